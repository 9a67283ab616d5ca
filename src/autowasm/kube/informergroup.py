"""InformerGroup: the informers of one resource in several namespaces, as one.

Not an informer. Invariant: no object is in two of them.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from autowasm.kube.informer import Informer, ResourceEventHandler
from autowasm.kube.resources import ObjectKey

T = TypeVar("T")


class InformerGroup(Generic[T]):
    """`informers`: one for each namespace, or a single one for all."""

    def __init__(self, informers: Iterable[Informer[T]]) -> None:
        self._informers = tuple(informers)

    def __iter__(self) -> Iterator[Informer[T]]:
        return iter(self._informers)

    def add_handler(self, handler: ResourceEventHandler[T]) -> None:
        """See `Informer.add_handler`."""
        for informer in self._informers:
            informer.add_handler(handler)

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Follow the server until the tasks are cancelled."""
        for informer in self._informers:
            tasks.create_task(informer.run(), name=f"informer {informer.name}")

    @property
    def has_synced(self) -> bool:
        """Whether all have."""
        return all(informer.has_synced for informer in self._informers)

    async def wait_synced(self) -> None:
        """Return once all have synced."""
        for informer in self._informers:
            await informer.wait_synced()

    def position(self) -> str | None:
        """The resourceVersion up to which all their stores are right; None: not known, or no numbers that can be compared."""
        positions = [informer.position for informer in self._informers]
        known = [one for one in positions if one is not None and one.isdecimal()]
        return min(known, key=int) if known and len(known) == len(positions) else None

    def keys(self) -> Iterator[ObjectKey]:
        """Of all that is stored."""
        return (key for informer in self._informers for key in informer.store)

    def get(self, key: ObjectKey) -> T | None:
        """The object as stored."""
        return next(
            (found for one in self._informers if (found := one.store.get(key)) is not None), None
        )

    def listed(self) -> Iterator[T]:
        """The objects of those namespaces that have synced."""
        for informer in self._informers:
            if informer.has_synced:
                yield from informer.store.values()
