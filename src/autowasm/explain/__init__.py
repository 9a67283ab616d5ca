"""Diagnosis of an AutoWasm, live or not yet applied: facts, then pure checks."""
