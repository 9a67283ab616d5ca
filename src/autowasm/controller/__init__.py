"""The AutoWasm reconciler with its decisions, fetch jobs and policies; `publishing/` has the writes, `pods/` tracks downloads."""
