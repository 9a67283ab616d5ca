"""Reads YAML and JSON as `kubectl` does, and writes YAML that every reader parses to the same data."""
