"""Reads YAML and JSON as `kubectl` does, finds the words for mistakes in them, and writes YAML that every reader parses to the same data."""
