"""A Proxy-Wasm host: runs a filter as Envoy does, without Envoy. It knows modules, plugins and streams, but not AutoWasm."""
