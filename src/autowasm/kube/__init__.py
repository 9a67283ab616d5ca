"""Generic Kubernetes machinery with client-go's names; knows nothing about AutoWasm."""
