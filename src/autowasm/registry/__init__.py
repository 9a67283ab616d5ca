"""OCI distribution: resolve, pull and push. Knows nothing about Kubernetes; the only home of oras."""
