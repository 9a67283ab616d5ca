"""Benchmarks: ratios to a named rival, measured in turns in one run. Not tests: nothing here passes or fails."""
