// Package proxywasm is the part of Proxy-Wasm ABI 0.2.1 that the filters here use, on plain Go: no SDK, no TinyGo.
//
// Build with GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared. Envoy calls _initialize, which runs the init
// functions, so a filter calls Register in init; its main function is never called.
// Source of the ABI: https://github.com/proxy-wasm/spec, abi-versions/v0.2.1.
package proxywasm

import (
	"runtime"
	"unsafe"
)

// The enumerations of the ABI.
const (
	statusOK = 0

	logInfo  = 2
	logError = 4

	mapRequestHeaders    = 0
	mapResponseHeaders   = 2
	mapCallResponse      = 6
	bufferRequestBody    = 0
	bufferCallResponse   = 4
	bufferVMConfig       = 6
	bufferPluginConfig   = 7
	streamRequest        = 0
	noGRPCStatus         = -1
	actionContinue       = 0
	actionPause          = 1
	contextOfNoParent    = 0
	bytesOfAnEmptyBuffer = 1
)

//go:wasmimport env proxy_log
func proxyLog(level uint32, message unsafe.Pointer, size uint32) uint32

//go:wasmimport env proxy_get_buffer_bytes
func proxyGetBufferBytes(buffer, start, limit uint32, data, size unsafe.Pointer) uint32

//go:wasmimport env proxy_get_property
func proxyGetProperty(path unsafe.Pointer, pathSize uint32, data, size unsafe.Pointer) uint32

//go:wasmimport env proxy_get_header_map_value
func proxyGetHeader(headers uint32, key unsafe.Pointer, keySize uint32, data, size unsafe.Pointer) uint32

//go:wasmimport env proxy_add_header_map_value
func proxyAddHeader(headers uint32, key unsafe.Pointer, keySize uint32, value unsafe.Pointer, valueSize uint32) uint32

//go:wasmimport env proxy_send_local_response
func proxySendLocalResponse(status uint32, detail unsafe.Pointer, detailSize uint32, body unsafe.Pointer, bodySize uint32, headers unsafe.Pointer, headersSize uint32, grpcStatus int32) uint32

//go:wasmimport env proxy_http_call
func proxyHTTPCall(cluster unsafe.Pointer, clusterSize uint32, headers unsafe.Pointer, headersSize uint32, body unsafe.Pointer, bodySize uint32, trailers unsafe.Pointer, trailersSize uint32, milliseconds uint32, call unsafe.Pointer) uint32

//go:wasmimport env proxy_set_effective_context
func proxySetEffectiveContext(context uint32) uint32

//go:wasmimport env proxy_continue_stream
func proxyContinueStream(stream uint32) uint32

// Memory that the host asked for and the filter has not yet taken: Go's garbage collector must not free it.
var allocated = map[uintptr][]byte{}

//go:wasmexport proxy_on_memory_allocate
func onMemoryAllocate(size uint32) unsafe.Pointer {
	bytes := make([]byte, max(size, bytesOfAnEmptyBuffer))
	pointer := unsafe.Pointer(unsafe.SliceData(bytes))
	allocated[uintptr(pointer)] = bytes
	return pointer
}

// fetch runs a host function that returns bytes in memory of ours. The result is nil when the host has no such value.
func fetch(call func(data, size unsafe.Pointer) uint32) []byte {
	var data, size uint32
	if call(unsafe.Pointer(&data), unsafe.Pointer(&size)) != statusOK {
		return nil
	}
	bytes := allocated[uintptr(data)]
	delete(allocated, uintptr(data))
	if len(bytes) < int(size) {
		return []byte{}
	}
	return bytes[:size]
}

func pointer(text string) (unsafe.Pointer, uint32) {
	return unsafe.Pointer(unsafe.StringData(text)), uint32(len(text))
}

func header(headers uint32, name string) string {
	key, size := pointer(name)
	value := fetch(func(data, length unsafe.Pointer) uint32 {
		return proxyGetHeader(headers, key, size, data, length)
	})
	runtime.KeepAlive(name)
	return string(value)
}

func addHeader(headers uint32, name, value string) {
	key, keySize := pointer(name)
	text, textSize := pointer(value)
	proxyAddHeader(headers, key, keySize, text, textSize)
	runtime.KeepAlive(name)
	runtime.KeepAlive(value)
}

func buffer(kind uint32, limit uint32) []byte {
	return fetch(func(data, size unsafe.Pointer) uint32 {
		return proxyGetBufferBytes(kind, 0, limit, data, size)
	})
}

func log(level uint32, text string) {
	message, size := pointer(text)
	proxyLog(level, message, size)
	runtime.KeepAlive(text)
}
