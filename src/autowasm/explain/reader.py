"""Reader: gets and lists for `gather.py`, bounded; what may not be read is remembered, not raised.

Not a cache and not a watch. Invariants: no Secret is listed; of a collection at most `MOST` objects are read; what
cannot be read is never taken for absent.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import Struct

from autowasm.kube.client import KubeClient
from autowasm.kube.errors import ApiError, Forbidden, NotFound
from autowasm.kube.resources import ObjectKey, ResourceType

T = TypeVar("T")

MOST: Final = 2_000
"""Objects of one collection: enough for a namespace, few enough for a command that a person waits for."""
_PAGE: Final = 500
_AT_ONCE: Final = 6
"""Calls; an API server's fairness gives one user about as many."""


class _ListMeta(Struct):
    continue_: str = msgspec.field(default="", name="continue")


class _Page(Struct, Generic[T]):
    items: list[T] | None = None
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)


class Reader:
    """`unread` and `cut` as in `Facts`."""

    def __init__(self, client: KubeClient) -> None:
        self.unread: dict[str, str] = {}
        self.cut: dict[str, int] = {}
        self._client = client
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def get(
        self, resource: ResourceType, key: ObjectKey, kind: type[T], *, what: str
    ) -> T | None:
        """One object, None if it is not there or may not be read."""
        try:
            async with self._places:
                body = await self._client.request("GET", resource.object_path(key))
            return msgspec.json.decode(body, type=kind, strict=False)
        except NotFound:
            return None
        except (ApiError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._missed(what, error)
            return None

    async def list_all(
        self,
        resource: ResourceType,
        namespaces: Iterable[str | None],
        kind: type[T],
        *,
        what: str,
        labels: str = "",
    ) -> tuple[T, ...]:
        """Objects of these namespaces (None: all)."""
        found: list[T] = []
        for namespace in namespaces:
            try:
                found += await self._list(
                    resource, namespace, kind, labels=labels, most=MOST - len(found)
                )
            except NotFound:  # the cluster has no such kind
                return ()
            except (ApiError, msgspec.DecodeError, UnicodeDecodeError) as error:
                self._missed(what, error)
                return ()
            if len(found) >= MOST:
                self.cut[what] = MOST
                break
        return tuple(found)

    async def _list(
        self,
        resource: ResourceType,
        namespace: str | None,
        kind: type[T],
        *,
        labels: str,
        most: int,
    ) -> list[T]:
        decoder = msgspec.json.Decoder(_Page[kind], strict=False)  # type: ignore[valid-type]
        found: list[T] = []
        path, token = resource.path(namespace=namespace), ""
        while len(found) < most:
            query = {"limit": str(min(_PAGE, most - len(found)))}
            query |= {"continue": token} if token else {}
            query |= {"labelSelector": labels} if labels else {}
            async with self._places:
                body = await self._client.request("GET", path, query=query)
            page: Any = decoder.decode(body)
            found += page.items or ()
            token = page.metadata.continue_
            if not token:
                break
        return found

    def _missed(self, what: str, error: Exception) -> None:
        if isinstance(error, Forbidden):
            self.unread[what] = "your account may not read them (RBAC)"
        else:
            self.unread[what] = str(error)[:200]
