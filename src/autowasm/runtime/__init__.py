"""The composition root of `wasmer`."""
