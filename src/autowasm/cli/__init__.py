"""The two commands, `wasmer` and `wasmc`."""
