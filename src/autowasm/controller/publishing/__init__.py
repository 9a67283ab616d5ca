"""How EnvoyFilters and statuses get to the API server."""
