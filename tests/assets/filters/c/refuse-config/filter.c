/* Filter refuse-config refuses a configuration that contains the word "refuse". ../../README.md describes it. */
#define FILTER_NAME "refuse-config"
#define FILTER_HAS_CONFIGURE
#define FILTER_HAS_RESPONSE_HEADERS
#include "../proxywasm/proxywasm.h"

static bool filter_configure(context *root) {
  bytes left = root->configuration;
  while (left.size >= 6 && memcmp(left.data, "refuse", 6) != 0) left.data++, left.size--;
  if (left.size < 6) return true;
  note(LOG_ERROR, "the configuration contains the word refuse: ", root->configuration);
  return false;
}

static void filter_response_headers(context *stream) {
  bytes configuration = stream->parent->configuration;
  proxy_add_header_map_value(MAP_RESPONSE_HEADERS, "x-configuration", 15, configuration.data, configuration.size);
}
