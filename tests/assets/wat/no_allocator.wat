;; hello.wat without an allocator: Envoy refuses it.
(module
  ;; int proxy_add_header_map_value(map_type, key_ptr, key_len, value_ptr, value_len)
  (import "env" "proxy_add_header_map_value"
    (func $add_header (param i32 i32 i32 i32 i32) (result i32)))
  ;; int proxy_log(level, msg_ptr, msg_len)
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))

  (memory (export "memory") 1)
  (global $heap (mut i32) (i32.const 4096))

  (data (i32.const 16) "hello")
  (data (i32.const 32) "world")
  (data (i32.const 64) "hello filter configured")

  ;; The host recognises the ABI by this (empty) export.
  (func (export "proxy_abi_version_0_2_1"))

  ;; Bump allocator. The host calls it whenever it has to hand bytes to the module
  ;; (get_buffer, get_header...). Grows the memory on demand, never frees.
  (func  (param $size i32) (result i32)
    (local $ptr i32)
    (local.set $ptr (global.get $heap))
    (global.set $heap
      (i32.and (i32.add (i32.add (global.get $heap) (local.get $size)) (i32.const 7))
               (i32.const -8)))
    (block $enough
      (br_if $enough
        (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
      (drop (memory.grow
        (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 1)))))
    (local.get $ptr))

  (func (export "proxy_on_context_create") (param $ctx i32) (param $parent i32))

  ;; 1 = success; 0 makes Envoy treat the VM / plugin as failed.
  (func (export "proxy_on_vm_start") (param $root i32) (param $conf_len i32) (result i32)
    (i32.const 1))
  (func (export "proxy_on_configure") (param $root i32) (param $conf_len i32) (result i32)
    (drop (call $log (i32.const 2) (i32.const 64) (i32.const 23)))   ;; 2 = info
    (i32.const 1))

  (func (export "proxy_on_response_headers")
    (param $ctx i32) (param $n i32) (param $eos i32) (result i32)
    (drop (call $add_header
      (i32.const 2)                       ;; map type 2 = HttpResponseHeaders
      (i32.const 16) (i32.const 5)        ;; "hello"
      (i32.const 32) (i32.const 5)))      ;; "world"
    (i32.const 0))                        ;; 0 = Continue

  (func (export "proxy_on_done") (param $ctx i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param $ctx i32))
  (func (export "proxy_on_delete") (param $ctx i32))
)
