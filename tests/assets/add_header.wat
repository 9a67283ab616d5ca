;; A hand-written proxy-wasm filter (ABI 0.2.1) that adds one header to every response.
;; NAME, VALUE and their lengths are filled in by tests/parts/wat.py.
(module
  ;; int proxy_add_header_map_value(map_type, key_ptr, key_len, value_ptr, value_len)
  (import "env" "proxy_add_header_map_value"
    (func $add_header (param i32 i32 i32 i32 i32) (result i32)))

  (memory (export "memory") 1)
  (global $heap (mut i32) (i32.const 4096))

  (data (i32.const 16) "{NAME}")
  (data (i32.const 1024) "{VALUE}")

  ;; The host recognises the ABI by this empty export.
  (func (export "proxy_abi_version_0_2_1"))

  ;; Bump allocator: the host calls it to hand bytes to the module. Grows the memory on demand, never frees.
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
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

  (func (export "proxy_on_context_create") (param $context i32) (param $parent i32))
  (func (export "proxy_on_vm_start") (param $root i32) (param $length i32) (result i32)
    (i32.const 1))
  (func (export "proxy_on_configure") (param $root i32) (param $length i32) (result i32)
    (i32.const 1))

  (func (export "proxy_on_response_headers")
    (param $context i32) (param $count i32) (param $end i32) (result i32)
    (drop (call $add_header
      (i32.const 2)                                ;; map type 2: response headers
      (i32.const 16) (i32.const {NAME_LENGTH})
      (i32.const 1024) (i32.const {VALUE_LENGTH})))
    (i32.const 0))                                 ;; 0: go on

  (func (export "proxy_on_done") (param $context i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param $context i32))
  (func (export "proxy_on_delete") (param $context i32))
)
