"""The AutoWasm reconciler and what feeds it."""
