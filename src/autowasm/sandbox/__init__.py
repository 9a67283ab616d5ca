"""A Proxy-Wasm host: runs a filter as Envoy does, without Envoy. Knows modules, plugins and streams, and nothing of AutoWasm."""
