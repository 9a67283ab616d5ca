"""Whose sidecars have fetched what: counting, proof of load, healing."""
