"""Reads YAML and JSON as `kubectl` does, reports the errors of their fields, and writes YAML that every reader parses to the same data."""
