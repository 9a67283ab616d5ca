"""Benchmarks: ratios to a named rival, measured alternately in one run. Not tests: nothing here passes or fails."""
