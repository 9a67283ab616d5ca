"""The AutoWasm resource and the EnvoyFilter made from it: pure data, no I/O."""
