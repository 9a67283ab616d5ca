"""Verified bytes on disk under their sha256."""
