"""Writes of EnvoyFilters and statuses to the API server: ownership, mutation cache, revert limiter."""
