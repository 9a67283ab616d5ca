// Filter fail-on-request panics when a request asks for it. ../../README.md describes it.
package main

import "filters/proxywasm"

func init() {
	proxywasm.Register(proxywasm.Filter{
		Name: "fail-on-request",
		RequestHeaders: func(stream *proxywasm.Stream, _ bool) bool {
			// Envoy does not show the request's headers to the filter any more when the response comes.
			stream.Value = stream.RequestHeader("x-fail")
			failIf(stream.Value == "request")
			return true
		},
		ResponseHeaders: func(stream *proxywasm.Stream) { failIf(stream.Value == "response") },
	})
}

func failIf(asked bool) {
	if asked {
		panic("the request asked for a failure")
	}
}

func main() {}
