package proxywasm

import (
	"encoding/binary"
	"runtime"
	"strings"
	"unsafe"
)

// Filter is what a filter does at each event. A field that is nil does nothing and lets the stream continue.
type Filter struct {
	Name            string
	Configure       func(*Plugin) bool            // false: refused
	RequestHeaders  func(*Stream, bool) bool      // whether the stream may continue, here and below; the argument: no body follows
	RequestBody     func(*Stream, int, bool) bool // size of the body so far, and whether it is complete
	ResponseHeaders func(*Stream)
	CallResponse    func(*Stream, int) // number of headers in the answer; 0: there was none
}

// Plugin is a configured use of the filter: what the ABI calls a root context. Several can share a VM.
type Plugin struct {
	Configuration []byte
	id            uint32
}

// Stream is one HTTP request and its response.
type Stream struct {
	Plugin *Plugin
	Value  string // for the filter's own use
	id     uint32
}

var (
	filter          Filter
	vmConfiguration []byte
	plugins         = map[uint32]*Plugin{}
	streams         = map[uint32]*Stream{}
	calls           = map[uint32]*Stream{}
)

// Register sets the filter of this module.
func Register(given Filter) { filter = given }

// VMConfiguration is what the VM was started with.
func VMConfiguration() []byte { return vmConfiguration }

// Info writes to Envoy's log, after the name of the filter.
func Info(text string) { log(logInfo, filter.Name+": "+text) }

// Error writes to Envoy's log, after the name of the filter.
func Error(text string) { log(logError, filter.Name+": "+text) }

// Property is an attribute of Envoy such as plugin_name; empty when there is none.
func Property(path string) []byte {
	key, keySize := pointer(path)
	value := fetch(func(data, size unsafe.Pointer) uint32 {
		return proxyGetProperty(key, keySize, data, size)
	})
	runtime.KeepAlive(path)
	return value
}

// RequestHeader is the value of a header of the request; empty when there is none.
func (*Stream) RequestHeader(name string) string { return header(mapRequestHeaders, name) }

// AddRequestHeader adds a header to what the service receives.
func (*Stream) AddRequestHeader(name, value string) { addHeader(mapRequestHeaders, name, value) }

// AddResponseHeader adds a header to what the client receives.
func (*Stream) AddResponseHeader(name, value string) { addHeader(mapResponseHeaders, name, value) }

// CallResponseHeader is the value of a header of the answer to a callout, during CallResponse.
func (*Stream) CallResponseHeader(name string) string { return header(mapCallResponse, name) }

// RequestBody is the first limit bytes of the body, during RequestBody.
func (*Stream) RequestBody(limit int) []byte { return buffer(bufferRequestBody, uint32(limit)) }

// Respond answers the request in place of the service. The stream must not continue afterwards.
func (*Stream) Respond(status int, body string) {
	text, size := pointer(body)
	headers := pairs([2]string{"content-type", "text/plain"})
	proxySendLocalResponse(uint32(status), nil, 0, text, size,
		unsafe.Pointer(unsafe.SliceData(headers)), uint32(len(headers)), noGRPCStatus)
	runtime.KeepAlive(body)
	runtime.KeepAlive(headers)
}

// Call sends a GET to a cluster of Envoy and returns the ABI's status, 0 when it is on its way.
func (stream *Stream) Call(cluster, path string, milliseconds int) uint32 {
	name, nameSize := pointer(cluster)
	headers := pairs([2]string{":method", "GET"}, [2]string{":path", path}, [2]string{":authority", cluster})
	var call uint32
	status := proxyHTTPCall(name, nameSize, unsafe.Pointer(unsafe.SliceData(headers)), uint32(len(headers)),
		nil, 0, nil, 0, uint32(milliseconds), unsafe.Pointer(&call))
	runtime.KeepAlive(cluster)
	runtime.KeepAlive(headers)
	if status == statusOK {
		calls[call] = stream
	}
	return status
}

// Resume lets a request that was paused continue, after a last change to it.
func (stream *Stream) Resume(change func()) {
	proxySetEffectiveContext(stream.id)
	change()
	proxyContinueStream(streamRequest)
}

// pairs writes headers as the ABI has them: a count, the sizes of all names and values, then each with a NUL behind it.
func pairs(headers ...[2]string) []byte {
	var content strings.Builder
	out := binary.LittleEndian.AppendUint32(nil, uint32(len(headers)))
	for _, pair := range headers {
		for _, text := range pair {
			out = binary.LittleEndian.AppendUint32(out, uint32(len(text)))
			content.WriteString(text)
			content.WriteByte(0)
		}
	}
	return append(out, content.String()...)
}
