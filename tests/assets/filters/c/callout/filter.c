/* Filter callout asks another cluster before it lets a request pass. ../../README.md describes it. */
#define FILTER_NAME "callout"
#define FILTER_HAS_REQUEST_HEADERS
#define FILTER_HAS_RESPONSE_HEADERS
#define FILTER_HAS_CALL_RESPONSE
#include "../proxywasm/proxywasm.h"

enum { TIMEOUT_MILLISECONDS = 2000 };

static int32_t call(context *stream, const char *cluster, const char *path) {
  const char *const headers[][2] = {{":method", "GET"}, {":path", path}, {":authority", cluster}};
  char *encoded = malloc(4 + 8 * 3 + 64 + strlen(path) + strlen(cluster));
  size_t size = pairs(encoded, headers, 3);
  int32_t status = proxy_http_call(cluster, strlen(cluster), encoded, size, NULL, 0, NULL, 0, TIMEOUT_MILLISECONDS,
                                   &stream->call);
  free(encoded);
  return status;
}

static enum action filter_request_headers(context *stream, bool end) {
  bytes configuration = stream->parent->configuration; /* CLUSTER /PATH */
  char *cluster = strndup(configuration.data ? configuration.data : "", configuration.size);
  char *space = strchr(cluster, ' ');
  if (space) *space = 0;
  int32_t status = call(stream, cluster, space ? space + 1 : "/");
  free(cluster);
  if (status == STATUS_OK) return PAUSE;
  snprintf(stream->value, sizeof stream->value, "error %d", status);
  add_header(MAP_REQUEST_HEADERS, "x-callout", stream->value);
  return CONTINUE;
}

static void filter_call_response(context *stream, uint32_t headers) {
  stream->call = 0;
  bytes status = headers ? header(MAP_CALL_RESPONSE_HEADERS, ":status") : (bytes){0};
  snprintf(stream->value, sizeof stream->value, "%.*s", (int)status.size, status.data ? status.data : "");
  if (!status.size) strcpy(stream->value, "no answer");
  free(status.data);
  proxy_set_effective_context(stream->id);
  add_header(MAP_REQUEST_HEADERS, "x-callout", stream->value);
  proxy_continue_stream(STREAM_REQUEST);
}

static void filter_response_headers(context *stream) {
  add_header(MAP_RESPONSE_HEADERS, "x-callout", stream->value);
}
