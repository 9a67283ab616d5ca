// Filter deny answers 403 to every request. ../../README.md describes it.
package main

import "filters/proxywasm"

func init() {
	proxywasm.Register(proxywasm.Filter{
		Name: "deny",
		RequestHeaders: func(stream *proxywasm.Stream, _ bool) bool {
			stream.Respond(403, "denied by the filter deny\n")
			return false
		},
	})
}

func main() {}
