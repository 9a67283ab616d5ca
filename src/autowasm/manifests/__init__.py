"""YAML and JSON text as `kubectl` reads it, and text that every YAML reader takes as it is meant."""
