/* Filter buffer-body holds a request back until its body is complete. ../../README.md describes it. */
#define FILTER_NAME "buffer-body"
#define FILTER_HAS_REQUEST_BODY
#define FILTER_HAS_RESPONSE_HEADERS
#include "../proxywasm/proxywasm.h"

static enum action filter_request_body(context *stream, size_t size, bool end) {
  if (!end) return PAUSE;
  bytes body = buffer(BUFFER_REQUEST_BODY, size);
  uint32_t sum = 0;
  for (size_t index = 0; index < body.size; index++) sum += (unsigned char)body.data[index];
  snprintf(stream->value, sizeof stream->value, "%zu %u", body.size, sum);
  free(body.data);
  return CONTINUE;
}

static void filter_response_headers(context *stream) {
  if (stream->value[0]) add_header(MAP_RESPONSE_HEADERS, "x-body", stream->value);
}
