"""Standalone mode: the same reconciler over a directory instead of an API server."""
