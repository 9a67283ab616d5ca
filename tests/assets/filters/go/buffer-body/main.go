// Filter buffer-body holds a request back until its body is complete. ../../README.md describes it.
package main

import (
	"fmt"

	"filters/proxywasm"
)

func init() {
	proxywasm.Register(proxywasm.Filter{
		Name:        "buffer-body",
		RequestBody: onRequestBody,
		ResponseHeaders: func(stream *proxywasm.Stream) {
			if stream.Value != "" {
				stream.AddResponseHeader("x-body", stream.Value)
			}
		},
	})
}

func onRequestBody(stream *proxywasm.Stream, size int, end bool) bool {
	if !end {
		return false
	}
	body := stream.RequestBody(size)
	var sum uint32
	for _, each := range body {
		sum += uint32(each)
	}
	stream.Value = fmt.Sprintf("%d %d", len(body), sum)
	return true
}

func main() {}
