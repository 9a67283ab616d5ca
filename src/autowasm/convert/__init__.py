"""Other objects that put Wasm filters into Envoys, as AutoWasms. Pure."""
