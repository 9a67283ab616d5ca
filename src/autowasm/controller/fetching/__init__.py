"""How modules get here, and to the other replicas, off the reconcile path."""
