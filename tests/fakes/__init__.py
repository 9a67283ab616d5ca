"""Servers that misbehave as no real one can be made to."""
