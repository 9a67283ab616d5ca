;; A filter for Envoy with something to test. It lets in only requests that say who they are:
;;
;;   * the configuration is the name of a team; without one the filter refuses to start
;;   * a request without the header "x-user" is answered with 401 and counted in the metric "gate_denied"
;;   * any other request passes with the header "x-team: CONFIGURATION"
;;   * the header "x-internal" is removed from responses
;;
;; examples/hello.wat explains how a filter in WebAssembly text is made up; this one only has more of it.
;;
;;     wat2wasm gate.wat -o gate.wasm && wasmc test suite.yaml

(module
  ;; Each returns 0 when it worked.
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  ;; get_buffer(buffer, first byte, length, where to put the address, where to put the length)
  (import "env" "proxy_get_buffer_bytes"
    (func $get_buffer (param i32 i32 i32 i32 i32) (result i32)))
  ;; get_header(map, name, its length, where to put the address, where to put the length)
  (import "env" "proxy_get_header_map_value"
    (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_add_header_map_value"
    (func $add_header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_remove_header_map_value"
    (func $remove_header (param i32 i32 i32) (result i32)))
  ;; reply(status, details, length, body, length, headers, length, gRPC status)
  (import "env" "proxy_send_local_response"
    (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  ;; define_metric(kind, name, its length, where to put the id)
  (import "env" "proxy_define_metric" (func $define_metric (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))

  (memory (export "memory") 1)
  (data (i32.const 16) "x-user")
  (data (i32.const 32) "x-team")
  (data (i32.const 48) "x-internal")
  (data (i32.const 64) "gate_denied")
  (data (i32.const 80) "say who you are\n")
  (data (i32.const 112) "no team is configured")

  ;; Envoy writes addresses, lengths and ids here.
  (global $address_at i32 (i32.const 0))
  (global $length_at i32 (i32.const 4))
  (global $metric_at i32 (i32.const 8))

  (global $team (mut i32) (i32.const 0))
  (global $team_length (mut i32) (i32.const 0))
  (global $heap (mut i32) (i32.const 4096))

  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
    (local $address i32)
    (local.set $address (global.get $heap))
    (global.set $heap
      (i32.and (i32.add (i32.add (global.get $heap) (local.get $size)) (i32.const 7))
               (i32.const -8)))
    (block $enough
      (br_if $enough
        (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
      (drop (memory.grow
        (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 1)))))
    (local.get $address))

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_context_create") (param $context i32) (param $parent i32))

  (func (export "proxy_on_vm_start") (param $context i32) (param $length i32) (result i32)
    (drop (call $define_metric (i32.const 0) (i32.const 64) (i32.const 11) (global.get $metric_at)))
    (i32.const 1))

  (func (export "proxy_on_configure") (param $context i32) (param $length i32) (result i32)
    (if (i32.eqz (local.get $length))
      (then
        (drop (call $log (i32.const 4) (i32.const 112) (i32.const 21)))   ;; 4: error
        (return (i32.const 0))))                                          ;; refuse
    (drop (call $get_buffer
      (i32.const 7)                                                       ;; 7: the configuration
      (i32.const 0) (local.get $length) (global.get $address_at) (global.get $length_at)))
    (global.set $team (i32.load (global.get $address_at)))
    (global.set $team_length (i32.load (global.get $length_at)))
    (i32.const 1))

  (func (export "proxy_on_request_headers")
    (param $context i32) (param $headers i32) (param $end_of_stream i32) (result i32)
    (if (call $get_header (i32.const 0) (i32.const 16) (i32.const 6)
          (global.get $address_at) (global.get $length_at))
      (then                                                               ;; there is no x-user
        (drop (call $increment (i32.load (global.get $metric_at)) (i64.const 1)))
        (drop (call $reply (i32.const 401) (i32.const 0) (i32.const 0)
          (i32.const 80) (i32.const 16) (i32.const 0) (i32.const 0) (i32.const -1)))
        (return (i32.const 1))))                                          ;; go no further
    (drop (call $add_header (i32.const 0) (i32.const 32) (i32.const 6)
      (global.get $team) (global.get $team_length)))
    (i32.const 0))

  (func (export "proxy_on_response_headers")
    (param $context i32) (param $headers i32) (param $end_of_stream i32) (result i32)
    (drop (call $remove_header (i32.const 2) (i32.const 48) (i32.const 10)))
    (i32.const 0))

  (func (export "proxy_on_done") (param $context i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param $context i32))
  (func (export "proxy_on_delete") (param $context i32))
)
