"""client-go's Informer and Store: objects of one resource by key, and handlers that receive every change.

The reflector is the only writer of a store. Handlers do not process a change themselves: they compute keys and add them to a
queue. Invariants: handlers receive a change after it is stored, and never an update without a change (except a resync);
`has_synced` is true only when the first list is stored and fully delivered; no object is in two informers of a group.
"""

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping, ValuesView
from typing import Generic, NamedTuple, Protocol, TypeVar

import structlog

from autowasm.kube.listwatch import ListerWatcher
from autowasm.kube.reflector import Reflector, ReflectorMetrics
from autowasm.kube.resources import ObjectKey
from autowasm.limits import KubeLimits

T = TypeVar("T")


class Delta(NamedTuple, Generic[T]):
    """One difference between the stored and the current state. `old` is None for an added object, `new` for a deleted one."""

    key: ObjectKey
    old: T | None
    new: T | None


class ObjectStore(Generic[T]):
    """The objects of one resource. One writer, many readers.

    Not copy-on-read: objects are frozen values (or documents that nothing changes), and reads return the objects themselves.
    It has no indices (client-go's Indexer): `PodMatcher` and `PodIndex` are handlers that keep their own.
    """

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, T] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._objects

    def __iter__(self) -> Iterator[ObjectKey]:
        return iter(self._objects)

    def get(self, key: ObjectKey) -> T | None:
        """The object, or None."""
        return self._objects.get(key)

    def keys(self) -> list[ObjectKey]:
        """All keys at this moment."""
        return list(self._objects)

    def values(self) -> ValuesView[T]:
        """All objects. Do not await while iterating."""
        return self._objects.values()

    def upsert(self, key: ObjectKey, new: T) -> Delta[T] | None:
        """Store the object. None if an equal one is stored: handlers need no delivery."""
        old = self._objects.get(key)
        if old is not None and (old is new or old == new):
            return None
        self._objects[key] = new
        return Delta(key, old, new)

    def delete(self, key: ObjectKey) -> Delta[T] | None:
        """Remove the object. None if there was none."""
        old = self._objects.get(key)
        if old is None:
            return None
        del self._objects[key]
        return Delta(key, old, None)

    def replace(self, objects: Mapping[ObjectKey, T]) -> Iterator[Delta[T]]:
        """Make the store equal to `objects`; each step of the iterator applies one difference.

        An object that vanished while no watch was open is `deleted`, with its last known state. The iterator is lazy so that the
        caller can yield to the loop in between; nothing else may write until it is exhausted.
        """
        for key in [key for key in self._objects if key not in objects]:
            if (delta := self.delete(key)) is not None:
                yield delta
        for key, new in objects.items():
            if (delta := self.upsert(key, new)) is not None:
                yield delta


_log = structlog.get_logger(__name__)

T_contra = TypeVar("T_contra", contravariant=True)

RESYNC_JITTER = 0.1


class ResourceEventHandler(Protocol[T_contra]):
    """Receives changes on the event loop. Must not wait, and must not raise."""

    def on_add(self, key: ObjectKey, new: T_contra, /, *, initial: bool) -> None:
        """An object was added; `initial`: it existed when we started."""

    def on_update(self, key: ObjectKey, old: T_contra, new: T_contra, /) -> None:
        """An object changed; at a resync `old` is `new`."""

    def on_delete(self, key: ObjectKey, old: T_contra, /) -> None:
        """An object was deleted; `old` is its last known state."""


class Informer(Generic[T]):
    """One resource: store, reflector and handlers. `run` it in a TaskGroup; it never returns.

    `resync`: seconds between deliveries of the whole store; None for never.
    """

    def __init__(
        self,
        name: str,
        *,
        list_watch: ListerWatcher[T],
        limits: KubeLimits,
        resync: float | None = None,
        metrics: ReflectorMetrics | None = None,
        rng: random.Random | None = None,
        streaming: bool = True,
    ) -> None:
        self.name = name
        self.store: ObjectStore[T] = ObjectStore()
        self._limits = limits
        self._resync = resync
        self._rng = rng or random.Random()  # noqa: S311 spreads load, hides nothing
        self._handlers: list[ResourceEventHandler[T]] = []
        self._synced = asyncio.Event()
        self.reflector: Reflector[T] = Reflector(
            name,
            list_watch=list_watch,
            store=self,
            limits=limits,
            metrics=metrics,
            rng=rng,
            streaming=streaming,
        )

    def add_handler(self, handler: ResourceEventHandler[T]) -> None:
        """Add a handler. It receives all stored objects at once."""
        self._handlers.append(handler)
        for key in self.store.keys():  # noqa: SIM118 a list: handlers may read the store
            if (stored := self.store.get(key)) is not None:
                handler.on_add(key, stored, initial=True)

    @property
    def has_synced(self) -> bool:
        """Whether a list was stored and delivered since `run` began."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return when `has_synced` is true."""
        await self._synced.wait()

    @property
    def last_event_age(self) -> float | None:
        """Seconds since the last data from the server; None: no data yet."""
        return self.reflector.last_event_age

    @property
    def position(self) -> str | None:
        """The resourceVersion up to which the store is current; None: unknown now."""
        return self.reflector.position

    async def run(self) -> None:
        """Follow the server until cancelled. The store then becomes stale; a second `run` syncs after a new list."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.reflector.run(), name=f"{self.name} reflector")
                if self._resync is not None:
                    group.create_task(
                        self._resync_forever(self._resync), name=f"{self.name} resync"
                    )
        finally:
            self._synced.clear()

    def stored(self, key: ObjectKey, /) -> T | None:
        """Called by the reflector."""
        return self.store.get(key)

    async def replace(self, objects: Mapping[ObjectKey, T], /) -> None:
        """Called by the reflector."""
        await self._deliver_all(self.store.replace(objects))
        self._synced.set()

    def upsert(self, key: ObjectKey, new: T, /) -> None:
        """Called by the reflector."""
        if (delta := self.store.upsert(key, new)) is not None:
            self._deliver(delta)

    def delete(self, key: ObjectKey, /) -> None:
        """Called by the reflector."""
        if (delta := self.store.delete(key)) is not None:
            self._deliver(delta)

    async def _resync_forever(self, period: float) -> None:
        await self.wait_synced()
        while True:
            await asyncio.sleep(period * (1.0 + RESYNC_JITTER * self._rng.random()))
            await self._deliver_all(self._unchanged())

    def _unchanged(self) -> Iterator[Delta[T]]:
        for key in self.store.keys():  # noqa: SIM118 a list: the store may change meanwhile
            if (stored := self.store.get(key)) is not None:
                yield Delta(key, stored, stored)

    async def _deliver_all(self, deltas: Iterator[Delta[T]]) -> None:
        """Deliver all deltas; yield to the loop after each `loop_budget` seconds."""
        loop = asyncio.get_running_loop()
        slice_ends = loop.time() + self._limits.loop_budget
        for delta in deltas:
            self._deliver(delta)
            if loop.time() >= slice_ends:
                await asyncio.sleep(0)
                slice_ends = loop.time() + self._limits.loop_budget

    def _deliver(self, delta: Delta[T]) -> None:
        for handler in self._handlers:
            try:
                self._notify(handler, delta)
            except Exception:  # supervised edge: a failure on one object must not stop the others
                _log.exception("handler failed", resource=self.name, key=str(delta.key))

    def _notify(self, handler: ResourceEventHandler[T], delta: Delta[T]) -> None:
        if delta.new is None:
            if delta.old is not None:
                handler.on_delete(delta.key, delta.old)
        elif delta.old is None:
            handler.on_add(delta.key, delta.new, initial=not self.has_synced)
        else:
            handler.on_update(delta.key, delta.old, delta.new)


class InformerGroup(Generic[T]):
    """The informers of one resource in several namespaces: one for each namespace, or a single one for all."""

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
        """Whether all informers have synced."""
        return all(informer.has_synced for informer in self._informers)

    async def wait_synced(self) -> None:
        """Return when all informers have synced."""
        for informer in self._informers:
            await informer.wait_synced()

    def position(self) -> str | None:
        """The resourceVersion up to which all stores are current; None: unknown, or not comparable numbers."""
        positions = [informer.position for informer in self._informers]
        known = [one for one in positions if one is not None and one.isdecimal()]
        return min(known, key=int) if known and len(known) == len(positions) else None

    def keys(self) -> Iterator[ObjectKey]:
        """The keys of all stored objects."""
        return (key for informer in self._informers for key in informer.store)

    def get(self, key: ObjectKey) -> T | None:
        """The stored object, or None."""
        return next(
            (found for one in self._informers if (found := one.store.get(key)) is not None), None
        )

    def listed(self) -> Iterator[T]:
        """The objects of the informers that have synced."""
        for informer in self._informers:
            if informer.has_synced:
                yield from informer.store.values()
