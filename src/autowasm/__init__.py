"""AutoWasm puts WebAssembly filters into running Envoy sidecars. `docs/architecture.md` shows the packages."""
