;; A filter for Envoy, written by hand: it adds the header "hello: world" to every response.
;;
;; This is WebAssembly in its text form. wat2wasm (from "wabt") turns it into the 498 bytes that Envoy runs:
;;
;;     wat2wasm hello.wat -o hello.wasm
;;
;; Real filters are written in Rust, Go, C++ or AssemblyScript with a proxy-wasm SDK. The SDK writes everything below
;; for you, except the few lines under "The filter itself".
;;
;; The contract between Envoy (the host) and a filter (the module) is called proxy-wasm. It has three parts:
;;   1. functions that the host offers and the module imports:  proxy_log, proxy_add_header_map_value, ...
;;   2. the module's memory, in which both read and write texts: a text is an address and a length;
;;   3. functions that the module exports and the host calls:   proxy_on_response_headers, ...

(module
  ;; ---- 1. What we take from Envoy -------------------------------------------------------------------------------
  ;; The types must be Envoy's to the letter; it refuses a module that imports anything else, or with another type.

  ;; add_header(map, name address, name length, value address, value length) -> 0 when it worked
  (import "env" "proxy_add_header_map_value"
    (func $add_header (param i32 i32 i32 i32 i32) (result i32)))

  ;; log(level, text address, text length) -> 0 when it worked
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))

  ;; ---- 2. Memory ------------------------------------------------------------------------------------------------
  ;; One page of 64 KiB. It has to be exported: Envoy reads our texts from it.
  (memory (export "memory") 1)

  ;; Our texts, each at an address that we chose.
  (data (i32.const 16) "hello")
  (data (i32.const 32) "world")
  (data (i32.const 64) "hello filter configured")

  ;; When Envoy wants to hand us bytes (a header's value, a body), it asks us for a place to put them. The simplest
  ;; allocator there is: give out what comes next, round up to 8 bytes, ask for more memory when it ends, never free.
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

  ;; ---- 3. What Envoy calls in us --------------------------------------------------------------------------------
  ;; By this name Envoy knows which version of the contract we keep. The function itself is never called.
  (func (export "proxy_abi_version_0_2_1"))

  ;; A context is one thing to look after: first the filter as a whole (parent 0), then each request.
  (func (export "proxy_on_context_create") (param $context i32) (param $parent i32))

  ;; The module has been loaded. 1 means "go on"; with 0 Envoy gives the filter up.
  (func (export "proxy_on_vm_start") (param $context i32) (param $configuration_length i32) (result i32)
    (i32.const 1))

  ;; The configuration (spec.filter.pluginConfig) has come. We have no use for it, but say so in Envoy's log.
  (func (export "proxy_on_configure") (param $context i32) (param $configuration_length i32) (result i32)
    (drop (call $log (i32.const 2) (i32.const 64) (i32.const 23)))   ;; 2 is the level "info"
    (i32.const 1))

  ;; ---- The filter itself ----------------------------------------------------------------------------------------
  ;; The headers of a response are here.
  (func (export "proxy_on_response_headers")
    (param $context i32) (param $headers i32) (param $end_of_stream i32) (result i32)
    (drop (call $add_header
      (i32.const 2)                       ;; which headers: 2 is those of the response
      (i32.const 16) (i32.const 5)        ;; the name: "hello"
      (i32.const 32) (i32.const 5)))      ;; the value: "world"
    (i32.const 0))                        ;; 0 lets the response go on

  ;; A request is over: done? (1 is yes), its access log, forget it.
  (func (export "proxy_on_done") (param $context i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param $context i32))
  (func (export "proxy_on_delete") (param $context i32))
)
