"""Code that exists for speed or memory only. Each module has a measurement in ADR 35."""
