"""Converts other objects that put Wasm filters into Envoys to AutoWasms. Pure."""
