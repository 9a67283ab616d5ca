"""A filter run once on this machine, without a mesh: `wasmc run` and `wasmc test`."""
