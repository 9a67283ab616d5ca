/* Filter probe runs the script in its configuration and logs what the host answers. ../../README.md describes it. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(name) __attribute__((import_module("env"), import_name(#name))) extern int32_t name
#define EXPORT(name) __attribute__((export_name(#name), used))

typedef const char *text;
typedef struct {
  char *data;
  size_t size;
} bytes;

IMPORT(proxy_log)(int32_t level, text message, size_t size);
IMPORT(proxy_get_log_level)(uint32_t *level);
IMPORT(proxy_get_current_time_nanoseconds)(uint64_t *time);
IMPORT(proxy_set_tick_period_milliseconds)(uint32_t milliseconds);
IMPORT(proxy_get_status)(uint32_t *code, char **data, size_t *size);
IMPORT(proxy_set_effective_context)(uint32_t context);
IMPORT(proxy_done)(void);
IMPORT(proxy_get_property)(text path, size_t path_size, char **data, size_t *size);
IMPORT(proxy_set_property)(text path, size_t path_size, text data, size_t size);
IMPORT(proxy_define_metric)(uint32_t kind, text name, size_t size, uint32_t *id);
IMPORT(proxy_increment_metric)(uint32_t id, int64_t offset);
IMPORT(proxy_record_metric)(uint32_t id, uint64_t value);
IMPORT(proxy_get_metric)(uint32_t id, uint64_t *value);
IMPORT(proxy_call_foreign_function)(text name, size_t size, text data, size_t data_size, char **out, size_t *out_size);
IMPORT(proxy_add_header_map_value)(uint32_t map, text key, size_t key_size, text value, size_t size);
IMPORT(proxy_replace_header_map_value)(uint32_t map, text key, size_t key_size, text value, size_t size);
IMPORT(proxy_get_header_map_value)(uint32_t map, text key, size_t key_size, char **data, size_t *size);
IMPORT(proxy_remove_header_map_value)(uint32_t map, text key, size_t key_size);
IMPORT(proxy_get_header_map_pairs)(uint32_t map, char **data, size_t *size);
IMPORT(proxy_set_header_map_pairs)(uint32_t map, text data, size_t size);
IMPORT(proxy_get_header_map_size)(uint32_t map, uint32_t *size);
IMPORT(proxy_get_buffer_bytes)(uint32_t kind, size_t start, size_t length, char **data, size_t *size);
IMPORT(proxy_get_buffer_status)(uint32_t kind, uint32_t *length, uint32_t *flags);
IMPORT(proxy_set_buffer_bytes)(uint32_t kind, size_t start, size_t length, text data, size_t size);
IMPORT(proxy_continue_stream)(uint32_t stream);
IMPORT(proxy_close_stream)(uint32_t stream);
IMPORT(proxy_send_local_response)(uint32_t status, text detail, size_t detail_size, text body, size_t body_size,
                                  text headers, size_t headers_size, int32_t grpc_status);
IMPORT(proxy_http_call)(text cluster, size_t cluster_size, text headers, size_t headers_size, text body,
                        size_t body_size, text trailers, size_t trailers_size, int32_t milliseconds, uint32_t *token);
IMPORT(proxy_grpc_call)(text target, size_t target_size, text service, size_t service_size, text method,
                        size_t method_size, text metadata, size_t metadata_size, text message, size_t message_size,
                        int32_t milliseconds, uint32_t *token);
IMPORT(proxy_grpc_stream)(text target, size_t target_size, text service, size_t service_size, text method,
                          size_t method_size, text metadata, size_t metadata_size, uint32_t *token);
IMPORT(proxy_grpc_send)(uint32_t token, text message, size_t size, uint32_t end);
IMPORT(proxy_grpc_close)(uint32_t token);
IMPORT(proxy_grpc_cancel)(uint32_t token);
IMPORT(proxy_get_shared_data)(text key, size_t key_size, char **data, size_t *size, uint32_t *cas);
IMPORT(proxy_set_shared_data)(text key, size_t key_size, text data, size_t size, uint32_t cas);
IMPORT(proxy_register_shared_queue)(text name, size_t size, uint32_t *token);
IMPORT(proxy_resolve_shared_queue)(text vm, size_t vm_size, text name, size_t size, uint32_t *token);
IMPORT(proxy_dequeue_shared_queue)(uint32_t token, char **data, size_t *size);
IMPORT(proxy_enqueue_shared_queue)(uint32_t token, text data, size_t size);

static bytes script;
static uint32_t last_stream, last_token;

/* How often an event happened in a context. */
typedef struct count {
  uint32_t context;
  char event[32];
  int number;
  struct count *next;
} count;
static count *counts;

static int occurrence(uint32_t context, text event) {
  for (count *each = counts; each; each = each->next)
    if (each->context == context && !strcmp(each->event, event)) return ++each->number;
  count *made = calloc(1, sizeof *made);
  made->context = context;
  made->number = 1;
  snprintf(made->event, sizeof made->event, "%s", event);
  made->next = counts;
  counts = made;
  return 1;
}

static void say(text line) { proxy_log(2, line, strlen(line)); }

/* Append bytes to a line; what is not printable becomes %XX. */
static void escaped(FILE *line, bytes value) {
  for (size_t at = 0; at < value.size; at++) {
    unsigned char byte = (unsigned char)value.data[at];
    fprintf(line, byte > 32 && byte < 127 && byte != '%' ? "%c" : "%%%02X", byte);
  }
}

static void answer(text event, text operation, int32_t result, bytes value) {
  bytes out = {0};
  FILE *line = open_memstream(&out.data, &out.size);
  fprintf(line, "%s %s -> %d ", event, operation, (int)result);
  escaped(line, value);
  fclose(line);
  say(out.data);
  free(out.data);
}

/* Decode a word of the script: %XX is a byte, a single ~ the empty word. */
static bytes word(char *from) {
  bytes out = {malloc(strlen(from) + 1), 0};
  if (strcmp(from, "~"))
    for (char *at = from; *at; at++) {
      unsigned int byte = (unsigned char)*at;
      if (*at == '%' && sscanf(at + 1, "%2x", &byte) == 1) at += 2;
      out.data[out.size++] = (char)byte;
    }
  out.data[out.size] = 0;
  return out;
}

/* Headers as the ABI has them, from name=value,name=value. */
static bytes pairs(char *list) {
  bytes names[2 * 64];
  uint32_t number = 0;
  if (strcmp(list, "~"))
    for (char *rest = NULL, *each = strtok_r(list, ",", &rest); each && number < 64; each = strtok_r(NULL, ",", &rest)) {
      char *value = strchr(each, '=');
      if (value) *value++ = 0;
      names[2 * number] = word(each);
      names[2 * number + 1] = word(value ? value : "~");
      number++;
    }
  bytes out = {0};
  FILE *stream = open_memstream(&out.data, &out.size);
  fwrite(&number, 4, 1, stream);
  for (uint32_t at = 0; at < 2 * number; at++) {
    uint32_t size = (uint32_t)names[at].size;
    fwrite(&size, 4, 1, stream);
  }
  for (uint32_t at = 0; at < 2 * number; at++) fwrite(names[at].data, 1, names[at].size + 1, stream);
  fclose(stream);
  return out;
}

#define MAX_WORDS 10
static char *words[MAX_WORDS];
static uint32_t number(int at) { return (uint32_t)strtoul(words[at], NULL, 0); }
static bool is(text name) { return !strcmp(words[0], name); }

/* Run one operation, in words[0] and its operands behind it. */
static void run(text event) {
  bytes a = words[1] ? word(words[1]) : (bytes){0}, b = words[2] ? word(words[2]) : (bytes){0};
  bytes c = words[3] ? word(words[3]) : (bytes){0}, value = {0};
  uint32_t small = 0, other = 0;
  uint64_t large = 0;
  char shown[80];
  int32_t result = -1;
  bool has_small = false;
  if (is("get")) result = proxy_get_header_map_value(number(1), b.data, b.size, &value.data, &value.size);
  if (is("add")) result = proxy_add_header_map_value(number(1), b.data, b.size, c.data, c.size);
  if (is("replace")) result = proxy_replace_header_map_value(number(1), b.data, b.size, c.data, c.size);
  if (is("remove")) result = proxy_remove_header_map_value(number(1), b.data, b.size);
  if (is("pairs")) result = proxy_get_header_map_pairs(number(1), &value.data, &value.size);
  if (is("setpairs")) c = pairs(words[2]), result = proxy_set_header_map_pairs(number(1), c.data, c.size);
  if (is("setraw")) result = proxy_set_header_map_pairs(number(1), b.data, b.size);
  if (is("size")) result = proxy_get_header_map_size(number(1), &small), has_small = true;
  if (is("bytes")) result = proxy_get_buffer_bytes(number(1), number(2), number(3), &value.data, &value.size);
  if (is("status")) result = proxy_get_buffer_status(number(1), &small, &other), has_small = true;
  if (is("write")) {
    bytes data = word(words[4]);
    result = proxy_set_buffer_bytes(number(1), number(2), number(3), data.data, data.size);
  }
  if (is("property")) {
    for (size_t at = 0; at < a.size; at++)
      if (a.data[at] == '.') a.data[at] = 0;
    result = proxy_get_property(a.data, a.size, &value.data, &value.size);
  }
  if (is("setproperty")) result = proxy_set_property(a.data, a.size, b.data, b.size);
  if (is("reply")) {
    bytes headers = words[3] ? pairs(words[3]) : (bytes){0}, details = words[5] ? word(words[5]) : (bytes){0};
    int32_t grpc = words[4] ? (int32_t)strtol(words[4], NULL, 0) : -1;
    result = proxy_send_local_response(number(1), details.data, details.size, b.data, b.size, headers.data,
                                       headers.size, grpc);
  }
  if (is("call")) {
    char list[200];
    snprintf(list, sizeof list, ":method=%s,:path=%s,:authority=probe", words[4] ? "POST" : "GET", words[2]);
    bytes headers = pairs(list), body = words[4] ? word(words[4]) : (bytes){0};
    result = proxy_http_call(a.data, a.size, headers.data, headers.size, body.data, body.size, NULL, 0,
                             (int32_t)number(3), &last_token);
  }
  if (is("rawcall")) {
    bytes headers = pairs(words[2]);
    result = proxy_http_call(a.data, a.size, headers.data, headers.size, NULL, 0, NULL, 0, (int32_t)number(3), &last_token);
  }
  if (is("grpc"))
    result = proxy_grpc_call(a.data, a.size, "probe.Service", 13, b.data, b.size, NULL, 0, c.data, c.size, 1000,
                             &last_token);
  if (is("grpcstream"))
    result = proxy_grpc_stream(a.data, a.size, "probe.Service", 13, b.data, b.size, NULL, 0, &last_token);
  if (is("grpcsend")) result = proxy_grpc_send(last_token, a.data, a.size, number(2));
  if (is("grpcclose")) result = proxy_grpc_close(words[1] ? number(1) : last_token);
  if (is("grpccancel")) result = proxy_grpc_cancel(words[1] ? number(1) : last_token);
  if (is("callstatus")) {
    result = proxy_get_status(&small, &value.data, &value.size);
    snprintf(shown, sizeof shown, "%u", small);
    answer(event, "code", result, (bytes){shown, strlen(shown)});
  }
  if (is("continue")) result = proxy_continue_stream(number(1));
  if (is("close")) result = proxy_close_stream(number(1));
  if (is("effective")) result = proxy_set_effective_context(words[1] ? number(1) : last_stream);
  if (is("tick")) result = proxy_set_tick_period_milliseconds(number(1));
  if (is("done")) result = proxy_done();
  if (is("level")) result = proxy_get_log_level(&small), has_small = true;
  if (is("now")) result = proxy_get_current_time_nanoseconds(&large);
  if (is("log")) result = proxy_log((int32_t)number(1), b.data, b.size);
  if (is("metric")) result = proxy_define_metric(number(1), b.data, b.size, &small), has_small = true;
  if (is("increment")) result = proxy_increment_metric(number(1), strtoll(words[2], NULL, 0));
  if (is("record")) result = proxy_record_metric(number(1), strtoull(words[2], NULL, 0));
  if (is("metricvalue")) {
    result = proxy_get_metric(number(1), &large);
    snprintf(shown, sizeof shown, "%llu", (unsigned long long)large);
    value = (bytes){shown, strlen(shown)};
  }
  if (is("foreign")) result = proxy_call_foreign_function(a.data, a.size, b.data, b.size, &value.data, &value.size);
  if (is("getshared")) result = proxy_get_shared_data(a.data, a.size, &value.data, &value.size, &other);
  if (is("setshared")) result = proxy_set_shared_data(a.data, a.size, b.data, b.size, words[3] ? number(3) : 0);
  if (is("queue")) result = proxy_register_shared_queue(a.data, a.size, &small), has_small = true;
  if (is("resolve")) result = proxy_resolve_shared_queue(a.data, a.size, b.data, b.size, &small), has_small = true;
  if (is("enqueue")) result = proxy_enqueue_shared_queue(number(1), b.data, b.size);
  if (is("dequeue")) result = proxy_dequeue_shared_queue(number(1), &value.data, &value.size);
  if (is("stdout")) result = printf("%s\n", a.data) < 0, fflush(stdout);
  if (is("stderr")) result = fprintf(stderr, "%s\n", a.data) < 0, fflush(stderr);
  if (is("outside")) result = proxy_log(2, (text)0x7fffff00, 100);
  if (is("environment")) value.data = getenv(a.data), value.size = value.data ? strlen(value.data) : 0, result = 0;
  if (is("trap")) __builtin_trap();
  if (is("loop"))
    for (volatile int forever = 1; forever;) {
    }
  if (has_small) {
    snprintf(shown, sizeof shown, "%u", small);
    value = (bytes){shown, strlen(shown)};
  }
  char operation[120];
  snprintf(operation, sizeof operation, "%s%s%s%s%s", words[0], words[1] ? " " : "", words[1] ? words[1] : "",
           words[2] ? " " : "", words[2] ? words[2] : "");
  answer(event, operation, result, value);
}

/* Run the lines of the script for an event: `EVENT OPERATION…`, or `EVENT@2 …` for its second time in the context. */
static uint32_t happen(uint32_t context, text event, uint32_t otherwise) {
  int time = occurrence(context, event);
  uint32_t result = otherwise;
  if (!script.data) return result;
  char *copy = strndup(script.data, script.size), *lines = NULL;
  for (char *line = strtok_r(copy, "\n", &lines); line; line = strtok_r(NULL, "\n", &lines)) {
    char *rest = NULL, *name = strtok_r(line, " ", &rest);
    char *at = name ? strchr(name, '@') : NULL;
    if (at) *at++ = 0;
    if (!name || strcmp(name, event) || (at && atoi(at) != time)) continue;
    for (int each = 0; each < MAX_WORDS; each++) words[each] = strtok_r(NULL, " ", &rest);
    if (!words[0]) continue;
    if (is("return"))
      result = number(1);
    else
      run(event);
  }
  free(copy);
  return result;
}

static void note(text event, uint32_t context, text rest) {
  char line[160];
  snprintf(line, sizeof line, "%s %s%s", event, context < 2 ? "root" : "stream", rest);
  say(line);
}

static void note_numbers(text event, uint32_t context, int count_, uint32_t one, uint32_t two, uint32_t three) {
  char rest[80] = "";
  if (count_ == 1) snprintf(rest, sizeof rest, " %u", one);
  if (count_ == 2) snprintf(rest, sizeof rest, " %u %u", one, two);
  if (count_ == 3) snprintf(rest, sizeof rest, " %u %u %u", one, two, three);
  note(event, context, rest);
}

EXPORT(proxy_abi_version_0_2_1) void proxy_abi_version(void) {}
EXPORT(proxy_on_memory_allocate) void *proxy_on_memory_allocate(size_t size) { return malloc(size ? size : 1); }

EXPORT(proxy_on_context_create) void on_context_create(uint32_t id, uint32_t parent) {
  if (parent) last_stream = id;
  note_numbers("context_create", id, 0, 0, 0, 0);
}

EXPORT(proxy_on_vm_start) uint32_t on_vm_start(uint32_t root, size_t size) {
  note_numbers("vm_start", root, 1, (uint32_t)size, 0, 0);
  return 1;
}

EXPORT(proxy_on_configure) uint32_t on_configure(uint32_t root, size_t size) {
  proxy_get_buffer_bytes(7, 0, size, &script.data, &script.size);
  note_numbers("configure", root, 0, 0, 0, 0);
  return happen(root, "configure", 1);
}

#define NUMBERED(event, first)                                                   \
  EXPORT(proxy_on_##event) uint32_t on_##event(uint32_t id, uint32_t one, uint32_t two) { \
    note_numbers(#event, id, 2, one, two, 0);                                   \
    return happen(id, #event, first);                                           \
  }
NUMBERED(request_headers, 0)
NUMBERED(request_body, 0)
NUMBERED(response_headers, 0)
NUMBERED(response_body, 0)
NUMBERED(downstream_data, 0)
NUMBERED(upstream_data, 0)

EXPORT(proxy_on_request_trailers) uint32_t on_request_trailers(uint32_t id, uint32_t trailers) {
  note_numbers("request_trailers", id, 1, trailers, 0, 0);
  return happen(id, "request_trailers", 0);
}
EXPORT(proxy_on_response_trailers) uint32_t on_response_trailers(uint32_t id, uint32_t trailers) {
  note_numbers("response_trailers", id, 1, trailers, 0, 0);
  return happen(id, "response_trailers", 0);
}
EXPORT(proxy_on_new_connection) uint32_t on_new_connection(uint32_t id) {
  note_numbers("new_connection", id, 0, 0, 0, 0);
  return happen(id, "new_connection", 0);
}
EXPORT(proxy_on_downstream_connection_close) void on_downstream_close(uint32_t id, uint32_t type) {
  note_numbers("downstream_close", id, 1, type, 0, 0);
  happen(id, "downstream_close", 0);
}
EXPORT(proxy_on_upstream_connection_close) void on_upstream_close(uint32_t id, uint32_t type) {
  note_numbers("upstream_close", id, 1, type, 0, 0);
  happen(id, "upstream_close", 0);
}
EXPORT(proxy_on_http_call_response)
void on_http_call_response(uint32_t id, uint32_t token, uint32_t headers, uint32_t body, uint32_t trailers) {
  note_numbers("http_call_response", id, 3, headers, body, trailers);
  happen(id, "http_call_response", 0);
}
EXPORT(proxy_on_grpc_receive_initial_metadata) void on_grpc_initial(uint32_t id, uint32_t token, uint32_t headers) {
  note_numbers("grpc_receive_initial_metadata", id, 0, 0, 0, 0);
  happen(id, "grpc_receive_initial_metadata", 0);
}
EXPORT(proxy_on_grpc_receive) void on_grpc_receive(uint32_t id, uint32_t token, uint32_t size) {
  note_numbers("grpc_receive", id, 1, size, 0, 0);
  happen(id, "grpc_receive", 0);
}
EXPORT(proxy_on_grpc_receive_trailing_metadata) void on_grpc_trailing(uint32_t id, uint32_t token, uint32_t trailers) {
  note_numbers("grpc_receive_trailing_metadata", id, 0, 0, 0, 0);
  happen(id, "grpc_receive_trailing_metadata", 0);
}
EXPORT(proxy_on_grpc_close) void on_grpc_close(uint32_t id, uint32_t token, uint32_t status) {
  note_numbers("grpc_close", id, 1, status, 0, 0);
  happen(id, "grpc_close", 0);
}
EXPORT(proxy_on_queue_ready) void on_queue_ready(uint32_t id, uint32_t token) {
  note_numbers("queue_ready", id, 0, 0, 0, 0);
  happen(id, "queue_ready", 0);
}
EXPORT(proxy_on_tick) void on_tick(uint32_t id) {
  note_numbers("tick", id, 0, 0, 0, 0);
  happen(id, "tick", 0);
}
EXPORT(proxy_on_log) void on_log(uint32_t id) {
  note_numbers("log", id, 0, 0, 0, 0);
  happen(id, "log", 0);
}
EXPORT(proxy_on_done) uint32_t on_done(uint32_t id) {
  note_numbers("done", id, 0, 0, 0, 0);
  return happen(id, "done", 1);
}
EXPORT(proxy_on_delete) void on_delete(uint32_t id) {
  note_numbers("delete", id, 0, 0, 0, 0);
  happen(id, "delete", 0);
}
