// istio-wasm-fetch pulls a module as the istio-agent does, with the agent's own cache and fetchers.
//
//	istio-wasm-fetch DIR URL
//
// URL is what WasmPlugin's `url` takes: oci://HOST/NAME:TAG or http://HOST/PATH. Prints the path of the module, which is
// below DIR, after what the agent logs; ends with status 1 and the agent's own message if it cannot be had.
package main

import (
	"fmt"
	"os"
	"time"

	"istio.io/istio/pkg/wasm"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: istio-wasm-fetch DIR URL")
		os.Exit(2)
	}
	if err := os.MkdirAll(os.Args[1], 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	cache := wasm.NewLocalFileCache(os.Args[1], wasm.Options{
		PurgeInterval:         wasm.DefaultPurgeInterval,
		ModuleExpiry:          wasm.DefaultModuleExpiry,
		HTTPRequestTimeout:    wasm.DefaultHTTPRequestTimeout,
		HTTPRequestMaxRetries: 1,
	})
	defer cache.Cleanup()
	path, err := cache.Get(os.Args[2], wasm.GetOptions{
		ResourceName:    "test",
		ResourceVersion: "1",
		RequestTimeout:  30 * time.Second,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(path)
}
