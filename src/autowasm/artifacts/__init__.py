"""Sources of modules: from `spec.filter.source` to verified bytes in the store."""
