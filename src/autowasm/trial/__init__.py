"""Runs a filter once on this machine, without a mesh: `wasmc run` and `wasmc test`."""
