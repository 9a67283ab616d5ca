/* Filter fail-on-request traps when a request asks for it. ../../README.md describes it. */
#define FILTER_NAME "fail-on-request"
#define FILTER_HAS_REQUEST_HEADERS
#define FILTER_HAS_RESPONSE_HEADERS
#include "../proxywasm/proxywasm.h"

static void fail_if_asked(const char *phase) {
  bytes wanted = header(MAP_REQUEST_HEADERS, "x-fail");
  bool fail = equal(wanted, phase);
  free(wanted.data);
  if (fail) __builtin_trap();
}

static enum action filter_request_headers(context *stream, bool end) {
  fail_if_asked("request");
  return CONTINUE;
}

static void filter_response_headers(context *stream) { fail_if_asked("response"); }
