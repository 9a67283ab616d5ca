"""OCI distribution: resolve, pull and push. Independent of Kubernetes; the only package that imports oras."""
