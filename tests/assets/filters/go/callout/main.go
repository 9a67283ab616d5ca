// Filter callout asks another cluster before it lets a request pass. ../../README.md describes it.
package main

import (
	"fmt"
	"strings"

	"filters/proxywasm"
)

const timeoutMilliseconds = 2000

func init() {
	proxywasm.Register(proxywasm.Filter{
		Name:           "callout",
		RequestHeaders: onRequestHeaders,
		CallResponse:   onCallResponse,
		ResponseHeaders: func(stream *proxywasm.Stream) {
			stream.AddResponseHeader("x-callout", stream.Value)
		},
	})
}

func onRequestHeaders(stream *proxywasm.Stream, _ bool) bool {
	cluster, path, found := strings.Cut(string(stream.Plugin.Configuration), " ")
	if !found {
		path = "/"
	}
	if status := stream.Call(cluster, path, timeoutMilliseconds); status != 0 {
		stream.Value = fmt.Sprintf("error %d", status)
		stream.AddRequestHeader("x-callout", stream.Value)
		return true
	}
	return false
}

func onCallResponse(stream *proxywasm.Stream, headers int) {
	stream.Value = "no answer"
	if headers > 0 {
		stream.Value = stream.CallResponseHeader(":status")
	}
	stream.Resume(func() { stream.AddRequestHeader("x-callout", stream.Value) })
}

func main() {}
