// Filter fail-on-request panics when a request asks for it. ../../README.md describes it.
package main

import "filters/proxywasm"

func init() {
	proxywasm.Register(proxywasm.Filter{
		Name: "fail-on-request",
		RequestHeaders: func(stream *proxywasm.Stream, _ bool) bool {
			failIfAsked(stream, "request")
			return true
		},
		ResponseHeaders: func(stream *proxywasm.Stream) { failIfAsked(stream, "response") },
	})
}

func failIfAsked(stream *proxywasm.Stream, phase string) {
	if stream.RequestHeader("x-fail") == phase {
		panic("the request asked for a failure")
	}
}

func main() {}
