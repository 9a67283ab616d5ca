"""The namespace of the Pod that we run in, as the kubelet tells it.

Not the API server's (`--kubeconfig` may lead to another cluster). Invariant: outside of a Pod there is none.
"""

from pathlib import Path
from typing import Final

FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Mounted with the ServiceAccount's token."""


def pod_namespace() -> str:
    """Empty outside of a Pod, or where the ServiceAccount is not mounted."""
    try:
        return FILE.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
