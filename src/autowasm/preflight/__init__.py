"""Pre-flight: a module runs once with its configuration in an isolated child process before any sidecar gets it."""
