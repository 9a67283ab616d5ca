/* Filter echo answers with what Envoy gave it. ../../README.md describes it. */
#define FILTER_NAME "echo"
#define FILTER_HAS_REQUEST_HEADERS
#include "../proxywasm/proxywasm.h"

extern char **environ;

static void tell(FILE *body, const char *name, bytes value) {
  fprintf(body, "%s ", name);
  for (size_t index = 0; index < value.size; index++) fprintf(body, "%02x", (unsigned char)value.data[index]);
  fputc('\n', body);
}

static bool asked(void) {
  bytes wanted = header(MAP_REQUEST_HEADERS, "x-echo"), name = property("plugin_name");
  bool answer = equal(wanted, "any") || (wanted.size && wanted.size == name.size &&
                                         memcmp(wanted.data, name.data, name.size) == 0);
  free(wanted.data);
  free(name.data);
  return answer;
}

static enum action filter_request_headers(context *stream, bool end) {
  if (!asked()) return CONTINUE;
  bytes answer = {0};
  FILE *body = open_memstream(&answer.data, &answer.size);
  tell(body, "configuration", stream->parent->configuration);
  tell(body, "vm-configuration", vm_configuration);
  const char *properties[] = {"plugin_name", "plugin_root_id", "plugin_vm_id"};
  for (size_t index = 0; index < sizeof properties / sizeof *properties; index++) {
    bytes value = property(properties[index]);
    tell(body, properties[index], value);
    free(value.data);
  }
  for (char **variable = environ; variable && *variable; variable++)
    tell(body, "environment", (bytes){*variable, strlen(*variable)});
  fclose(body);
  respond(200, answer.data, answer.size);
  free(answer.data);
  return PAUSE;
}
