// Filter echo answers with what Envoy gave it. ../../README.md describes it.
package main

import (
	"encoding/hex"
	"os"
	"strings"

	"filters/proxywasm"
)

func init() {
	proxywasm.Register(proxywasm.Filter{Name: "echo", RequestHeaders: onRequestHeaders})
}

func onRequestHeaders(stream *proxywasm.Stream, _ bool) bool {
	asked := stream.RequestHeader("x-echo")
	if asked == "" || (asked != "any" && asked != string(proxywasm.Property("plugin_name"))) {
		return true
	}
	var body strings.Builder
	tell := func(name string, value []byte) {
		body.WriteString(name + " " + hex.EncodeToString(value) + "\n")
	}
	tell("configuration", stream.Plugin.Configuration)
	tell("vm-configuration", proxywasm.VMConfiguration())
	for _, property := range []string{"plugin_name", "plugin_root_id", "plugin_vm_id"} {
		tell(property, proxywasm.Property(property))
	}
	for _, variable := range os.Environ() {
		tell("environment", []byte(variable))
	}
	stream.Respond(200, body.String())
	return false
}

func main() {}
