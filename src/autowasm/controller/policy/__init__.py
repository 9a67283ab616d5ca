"""What an AutoWasm may do: where its module may come from, whom it may reach, what it may have."""
