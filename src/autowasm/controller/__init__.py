"""The AutoWasm reconciler and what feeds it: `watching` ▶ `policy` ▶ `fetching` ▶ `publishing`, and `pods` for who has it."""
