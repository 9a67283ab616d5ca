/* Filter fail-on-request traps when a request asks for it. ../../README.md describes it. */
#define FILTER_NAME "fail-on-request"
#define FILTER_HAS_REQUEST_HEADERS
#define FILTER_HAS_RESPONSE_HEADERS
#include "../proxywasm/proxywasm.h"

static enum action filter_request_headers(context *stream, bool end) {
  /* Envoy does not show the request's headers to the filter any more when the response comes. */
  bytes wanted = header(MAP_REQUEST_HEADERS, "x-fail");
  snprintf(stream->value, sizeof stream->value, "%.*s", (int)wanted.size, wanted.data ? wanted.data : "");
  free(wanted.data);
  if (strcmp(stream->value, "request") == 0) __builtin_trap();
  return CONTINUE;
}

static void filter_response_headers(context *stream) {
  if (strcmp(stream->value, "response") == 0) __builtin_trap();
}
