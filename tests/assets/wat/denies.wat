;; Answers every request with 403 and the header "denied: yes", before it goes anywhere. CONNECT is a request, too.
(module
  ;; int proxy_send_local_response(status, details_ptr, details_len, body_ptr, body_len, headers_ptr, headers_len, grpc_status)
  (import "env" "proxy_send_local_response"
    (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))

  (memory (export "memory") 1)

  ;; The headers as the ABI serializes them: how many, the sizes of each name and value, then each with a NUL.
  (data (i32.const 16) "\01\00\00\00" "\06\00\00\00" "\03\00\00\00" "denied\00" "yes\00")

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 4096))
  (func (export "proxy_on_context_create") (param $ctx i32) (param $parent i32))
  (func (export "proxy_on_vm_start") (param $root i32) (param $size i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param $root i32) (param $size i32) (result i32) (i32.const 1))

  (func (export "proxy_on_request_headers")
    (param $ctx i32) (param $n i32) (param $end i32) (result i32)
    (drop (call $respond
      (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
      (i32.const 16) (i32.const 23) (i32.const -1)))
    (i32.const 1))                      ;; 1 = StopIteration

  (func (export "proxy_on_done") (param $ctx i32) (result i32) (i32.const 1))
  (func (export "proxy_on_delete") (param $ctx i32))
)
