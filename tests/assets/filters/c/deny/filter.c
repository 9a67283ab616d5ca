/* Filter deny answers 403 to every request. ../../README.md describes it. */
#define FILTER_NAME "deny"
#define FILTER_HAS_REQUEST_HEADERS
#include "../proxywasm/proxywasm.h"

static enum action filter_request_headers(context *stream, bool end) {
  const char *body = "denied by the filter deny\n";
  respond(403, body, strlen(body));
  return PAUSE;
}
