"""The fault suite: for each fault, three real replicas, steady downloads and a steady load, and what has to hold (docs/reliability.md)."""
