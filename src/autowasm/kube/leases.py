"""One Lease of the API server, as `leaderelection.py` asks for it.

Not an informer: whoever elects must read what is stored now. Invariant: an update carries the resourceVersion that was read.
"""

from collections.abc import Mapping
from typing import Any

from autowasm.kube.calls import Document, decode_document
from autowasm.kube.client import KubeClient
from autowasm.kube.resources import LEASES, ObjectKey


class Lease:
    """The Lease of this name; it need not be there yet."""

    def __init__(self, client: KubeClient, key: ObjectKey) -> None:
        self._client = client
        self._key = key

    async def get(self, *, timeout: float) -> Document:
        """GET. Raises ApiError."""
        path = LEASES.object_path(self._key)
        return decode_document(await self._client.request("GET", path, timeout=timeout))

    async def create(self, spec: Mapping[str, Any], *, timeout: float) -> Document:
        """POST. Raises AlreadyExists, other ApiError."""
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"namespace": self._key.namespace, "name": self._key.name},
            "spec": dict(spec),
        }
        path = LEASES.path(namespace=self._key.namespace)
        answer = await self._client.request("POST", path, body=body, timeout=timeout)
        return decode_document(answer)

    async def update(
        self, spec: Mapping[str, Any], *, read: Mapping[str, Any], timeout: float
    ) -> Document:
        """PUT. Raises Conflict, NotFound, other ApiError."""
        path = LEASES.object_path(self._key)
        body = {**read, "spec": dict(spec)}
        answer = await self._client.request("PUT", path, body=body, timeout=timeout)
        return decode_document(answer)
