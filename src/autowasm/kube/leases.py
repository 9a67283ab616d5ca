"""One Lease of the API server, as `leaderelection.py` asks for it.

Not an informer: whoever elects must read what is stored now. Invariant: an update carries the resourceVersion that was read.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from autowasm.kube.calls import Document
from autowasm.kube.client import KubeClient
from autowasm.kube.documents import decode_document
from autowasm.kube.errors import ApiError
from autowasm.kube.resources import LEASES, ObjectKey

ASKED_FOR: Final = 5.0
"""Seconds that `last_renewal` may take: a start must not wait for an API server that is down."""


async def last_renewal(lease: "Lease") -> float | None:
    """When it was last renewed, in seconds since the epoch; None: never, or that cannot be learned now."""
    try:
        async with asyncio.timeout(ASKED_FOR):
            found = await lease.get(timeout=ASKED_FOR)
        return datetime.fromisoformat(found["spec"]["renewTime"]).timestamp()
    except (ApiError, OSError, KeyError, TypeError, ValueError):
        return None


class Lease:
    """The Lease of this name; it need not be there yet."""

    def __init__(self, client: KubeClient, key: ObjectKey) -> None:
        self._client = client
        self._key = key

    async def get(self, *, timeout: float) -> Document:
        """GET. Raises ApiError."""
        path = LEASES.object_path(self._key)
        return await decode_document(await self._client.request("GET", path, timeout=timeout))

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
        return await decode_document(answer)

    async def update(
        self, spec: Mapping[str, Any], *, read: Mapping[str, Any], timeout: float
    ) -> Document:
        """PUT. Raises Conflict, NotFound, other ApiError."""
        path = LEASES.object_path(self._key)
        body = {**read, "spec": dict(spec)}
        answer = await self._client.request("PUT", path, body=body, timeout=timeout)
        return await decode_document(answer)
