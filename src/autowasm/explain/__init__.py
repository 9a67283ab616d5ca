"""Diagnosis of a live AutoWasm, and of one that is not applied yet: facts, then pure checks."""
