"""The AutoWasm reconciler with its decisions, fetch jobs and policies; `publishing/` writes, `pods/` tracks downloads."""
