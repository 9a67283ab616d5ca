"""The fault suite: for each fault, three real replicas, steady downloads and a steady load, and the assertions (docs/reliability.md)."""
