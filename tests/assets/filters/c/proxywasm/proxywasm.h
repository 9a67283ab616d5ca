/* The part of Proxy-Wasm ABI 0.2.1 that the filters here use, on plain C with wasi-libc.
 *
 * A filter includes this file once, defines FILTER_NAME before, and the functions filter_* that it says it has
 * (FILTER_HAS_*). Source of the ABI: https://github.com/proxy-wasm/spec, abi-versions/v0.2.1. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(name) __attribute__((import_module("env"), import_name(#name))) extern
#define EXPORT(name) __attribute__((export_name(#name), used))

enum { STATUS_OK = 0 };
enum { LOG_INFO = 2, LOG_ERROR = 4 };
enum { MAP_REQUEST_HEADERS = 0, MAP_RESPONSE_HEADERS = 2, MAP_CALL_RESPONSE_HEADERS = 6 };
enum { BUFFER_REQUEST_BODY = 0, BUFFER_VM_CONFIGURATION = 6, BUFFER_PLUGIN_CONFIGURATION = 7 };
enum { STREAM_REQUEST = 0 };

IMPORT(proxy_log) int32_t proxy_log(int32_t level, const char *message, size_t size);
IMPORT(proxy_get_buffer_bytes)
int32_t proxy_get_buffer_bytes(int32_t buffer, size_t start, size_t limit, char **data, size_t *size);
IMPORT(proxy_get_property)
int32_t proxy_get_property(const char *path, size_t path_size, char **data, size_t *size);
IMPORT(proxy_get_header_map_value)
int32_t proxy_get_header_map_value(int32_t map, const char *key, size_t key_size, char **data, size_t *size);
IMPORT(proxy_add_header_map_value)
int32_t proxy_add_header_map_value(int32_t map, const char *key, size_t key_size, const char *value, size_t size);
IMPORT(proxy_send_local_response)
int32_t proxy_send_local_response(int32_t status, const char *detail, size_t detail_size, const char *body,
                                  size_t body_size, const char *headers, size_t headers_size, int32_t grpc_status);
IMPORT(proxy_http_call)
int32_t proxy_http_call(const char *cluster, size_t cluster_size, const char *headers, size_t headers_size,
                        const char *body, size_t body_size, const char *trailers, size_t trailers_size,
                        int32_t milliseconds, uint32_t *call);
IMPORT(proxy_set_effective_context) int32_t proxy_set_effective_context(uint32_t context);
IMPORT(proxy_continue_stream) int32_t proxy_continue_stream(int32_t stream);

typedef struct {
  char *data; /* owned; NULL where the host has no such value */
  size_t size;
} bytes;

/* A root context, which is one configured use of the filter, or a stream, which has one as its parent. */
typedef struct context {
  uint32_t id;
  struct context *parent, *next;
  bytes configuration; /* of a root context */
  uint32_t call;       /* of a stream: its callout, 0 without one */
  char value[64];      /* of a stream: for the filter's own use */
} context;

enum action { CONTINUE = 0, PAUSE = 1 };

static context *contexts;
static bytes vm_configuration;

static context *context_of(uint32_t id) {
  context *found = contexts;
  while (found && found->id != id) found = found->next;
  if (!found) __builtin_trap();
  return found;
}

static bytes buffer(int32_t kind, size_t limit) {
  bytes out = {0};
  if (proxy_get_buffer_bytes(kind, 0, limit, &out.data, &out.size) != STATUS_OK) return (bytes){0};
  return out;
}

static bytes property(const char *path) {
  bytes out = {0};
  if (proxy_get_property(path, strlen(path), &out.data, &out.size) != STATUS_OK) return (bytes){0};
  return out;
}

static bytes header(int32_t map, const char *name) {
  bytes out = {0};
  if (proxy_get_header_map_value(map, name, strlen(name), &out.data, &out.size) != STATUS_OK) return (bytes){0};
  return out;
}

static inline bool equal(bytes value, const char *text) {
  return value.size == strlen(text) && memcmp(value.data, text, value.size) == 0;
}

static void add_header(int32_t map, const char *name, const char *value) {
  proxy_add_header_map_value(map, name, strlen(name), value, strlen(value));
}

/* Log the text and the bytes, after the name of the filter. */
static void note(int32_t level, const char *text, bytes value) {
  int size = snprintf(NULL, 0, "%s: %s%.*s", FILTER_NAME, text, (int)value.size, value.data);
  char *line = malloc((size_t)size + 1);
  snprintf(line, (size_t)size + 1, "%s: %s%.*s", FILTER_NAME, text, (int)value.size, value.data);
  proxy_log(level, line, (size_t)size);
  free(line);
}

/* Write `count` headers as the ABI has them: the count, the sizes of all names and values, then each with a NUL behind it. */
static inline size_t pairs(char *out, const char *const headers[][2], uint32_t count) {
  char *size = out + 4, *text = out + 4 + 8 * count;
  memcpy(out, &count, 4);
  for (uint32_t index = 0; index < 2 * count; index++, size += 4) {
    const char *word = headers[index / 2][index % 2];
    uint32_t length = (uint32_t)strlen(word);
    memcpy(size, &length, 4);
    memcpy(text, word, length + 1);
    text += length + 1;
  }
  return (size_t)(text - out);
}

/* Answer the request in place of the service. */
static inline void respond(int32_t status, const char *body, size_t size) {
  char headers[64];
  size_t length = pairs(headers, (const char *const[][2]){{"content-type", "text/plain"}}, 1);
  proxy_send_local_response(status, NULL, 0, body, size, headers, length, -1);
}

#ifdef FILTER_HAS_CONFIGURE
static bool filter_configure(context *root); /* false: refused */
#endif
#ifdef FILTER_HAS_REQUEST_HEADERS
static enum action filter_request_headers(context *stream, bool end);
#endif
#ifdef FILTER_HAS_REQUEST_BODY
static enum action filter_request_body(context *stream, size_t size, bool end);
#endif
#ifdef FILTER_HAS_RESPONSE_HEADERS
static void filter_response_headers(context *stream);
#endif
#ifdef FILTER_HAS_CALL_RESPONSE
static void filter_call_response(context *stream, uint32_t headers);
#endif

EXPORT(proxy_abi_version_0_2_1) void proxy_abi_version(void) {}

EXPORT(proxy_on_memory_allocate) void *proxy_on_memory_allocate(size_t size) { return malloc(size ? size : 1); }

EXPORT(proxy_on_context_create) void proxy_on_context_create(uint32_t id, uint32_t parent) {
  context *created = calloc(1, sizeof *created);
  created->id = id;
  created->parent = parent ? context_of(parent) : NULL;
  created->next = contexts;
  contexts = created;
}

EXPORT(proxy_on_vm_start) int32_t proxy_on_vm_start(uint32_t root, size_t size) {
  if (size) vm_configuration = buffer(BUFFER_VM_CONFIGURATION, size);
  return 1;
}

EXPORT(proxy_on_configure) int32_t proxy_on_configure(uint32_t id, size_t size) {
  context *root = context_of(id);
  free(root->configuration.data);
  root->configuration = size ? buffer(BUFFER_PLUGIN_CONFIGURATION, size) : (bytes){0};
  note(LOG_INFO, "configuration: ", root->configuration);
#ifdef FILTER_HAS_CONFIGURE
  return filter_configure(root);
#else
  return 1;
#endif
}

EXPORT(proxy_on_request_headers) int32_t proxy_on_request_headers(uint32_t id, uint32_t count, uint32_t end) {
#ifdef FILTER_HAS_REQUEST_HEADERS
  return filter_request_headers(context_of(id), end);
#else
  return CONTINUE;
#endif
}

EXPORT(proxy_on_request_body) int32_t proxy_on_request_body(uint32_t id, size_t size, uint32_t end) {
#ifdef FILTER_HAS_REQUEST_BODY
  return filter_request_body(context_of(id), size, end);
#else
  return CONTINUE;
#endif
}

EXPORT(proxy_on_response_headers) int32_t proxy_on_response_headers(uint32_t id, uint32_t count, uint32_t end) {
  add_header(MAP_RESPONSE_HEADERS, "x-filter", FILTER_NAME);
#ifdef FILTER_HAS_RESPONSE_HEADERS
  filter_response_headers(context_of(id));
#endif
  return CONTINUE;
}

EXPORT(proxy_on_http_call_response)
void proxy_on_http_call_response(uint32_t root, uint32_t call, uint32_t headers, uint32_t body, uint32_t trailers) {
#ifdef FILTER_HAS_CALL_RESPONSE
  for (context *each = contexts; each; each = each->next)
    if (each->call && each->call == call) {
      filter_call_response(each, headers);
      return;
    }
#endif
}

EXPORT(proxy_on_done) int32_t proxy_on_done(uint32_t id) { return 1; }

EXPORT(proxy_on_delete) void proxy_on_delete(uint32_t id) {
  for (context **link = &contexts; *link; link = &(*link)->next)
    if ((*link)->id == id) {
      context *gone = *link;
      *link = gone->next;
      free(gone->configuration.data);
      free(gone);
      return;
    }
}
