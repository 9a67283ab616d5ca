// Filter refuse-config refuses a configuration that contains the word "refuse". ../../README.md describes it.
package main

import (
	"bytes"

	"filters/proxywasm"
)

func init() {
	proxywasm.Register(proxywasm.Filter{
		Name: "refuse-config",
		Configure: func(plugin *proxywasm.Plugin) bool {
			if !bytes.Contains(plugin.Configuration, []byte("refuse")) {
				return true
			}
			proxywasm.Error("the configuration contains the word refuse: " + string(plugin.Configuration))
			return false
		},
		ResponseHeaders: func(stream *proxywasm.Stream) {
			stream.AddResponseHeader("x-configuration", string(stream.Plugin.Configuration))
		},
	})
}

func main() {}
