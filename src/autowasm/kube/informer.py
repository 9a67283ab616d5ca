"""client-go's Store: the objects of one resource by key, as one writer, the reflector, says; everybody reads.

Not a copy-on-read store: objects are frozen values (or documents that nobody changes), and reads return them themselves.
It has no indices (client-go's Indexer): `PodMatcher` and `PodIndex` are handlers that keep what they need. Invariant: nobody
hears of a change that was none.

client-go's Informer: a reflector, the store that it fills, and handlers that hear of every change.

Not a queue: handlers compute keys and add them to one. Invariants: handlers hear of a change after the store has it;
`has_synced` is true only once the first list is in the store and was delivered in full.

InformerGroup: the informers of one resource in several namespaces, as one.

Not an informer. Invariant: no object is in two of them.
"""

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping, ValuesView
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import structlog

from autowasm.kube.listwatch import ListerWatcher
from autowasm.kube.reflector import Reflector, ReflectorMetrics
from autowasm.kube.resources import ObjectKey
from autowasm.limits import KubeLimits

T = TypeVar("T")


class Delta(NamedTuple, Generic[T]):
    """One difference between what was stored and what is. `old` is None for `added`, `new` for `deleted`."""

    type: Literal["added", "updated", "deleted"]
    key: ObjectKey
    old: T | None
    new: T | None


class ObjectStore(Generic[T]):
    """What there is of one resource."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, T] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._objects

    def __iter__(self) -> Iterator[ObjectKey]:
        return iter(self._objects)

    def get(self, key: ObjectKey) -> T | None:
        """The object, None if there is none."""
        return self._objects.get(key)

    def keys(self) -> list[ObjectKey]:
        """All keys, as they are now."""
        return list(self._objects)

    def values(self) -> ValuesView[T]:
        """All objects. Do not await while iterating."""
        return self._objects.values()

    def upsert(self, key: ObjectKey, new: T) -> Delta[T] | None:
        """Store the object. None if an equal one was stored: nobody need hear of it."""
        old = self._objects.get(key)
        if old is not None and old == new:
            return None
        self._objects[key] = new
        return Delta("added" if old is None else "updated", key, old, new)

    def delete(self, key: ObjectKey) -> Delta[T] | None:
        """Drop the object. None if there was none."""
        old = self._objects.get(key)
        if old is None:
            return None
        del self._objects[key]
        return Delta("deleted", key, old, None)

    def replace(self, objects: Mapping[ObjectKey, T]) -> Iterator[Delta[T]]:
        """Make the store equal to `objects`, one difference at a time, as the iterator is driven.

        What vanished while we were not looking comes as `deleted`, with the last known object. It is lazy so that
        the caller can let the loop run in between; nobody else may write until it is exhausted.
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
    """Hears of changes, on the loop: must not wait, and must not raise."""

    def on_add(self, key: ObjectKey, new: T_contra, /, *, initial: bool) -> None:
        """An object came; `initial`: it was there when we started."""

    def on_update(self, key: ObjectKey, old: T_contra, new: T_contra, /) -> None:
        """An object changed; at a resync `old` is `new`."""

    def on_delete(self, key: ObjectKey, old: T_contra, /) -> None:
        """An object went; `old` is the last that we saw of it."""


class Informer(Generic[T]):
    """One resource, stored and told. `run` it in a TaskGroup; it never returns.

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
        """Tell this handler too. What is stored already is delivered to it at once."""
        self._handlers.append(handler)
        for key in self.store.keys():  # noqa: SIM118 a list: handlers may look at the store
            if (stored := self.store.get(key)) is not None:
                handler.on_add(key, stored, initial=True)

    @property
    def has_synced(self) -> bool:
        """Whether a list is stored and was delivered since `run` began."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return once `has_synced`."""
        await self._synced.wait()

    @property
    def last_event_age(self) -> float | None:
        """Seconds since the server last said anything; None: not yet."""
        return self.reflector.last_event_age

    @property
    def position(self) -> str | None:
        """The resourceVersion up to which the store is right; None: not known now."""
        return self.reflector.position

    async def run(self) -> None:
        """Follow the server until cancelled. What is stored then grows old; run again, it is synced once it was listed anew."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.reflector.run(), name=f"{self.name} reflector")
                if self._resync is not None:
                    group.create_task(
                        self._resync_forever(self._resync), name=f"{self.name} resync"
                    )
        finally:
            self._synced.clear()

    async def replace(self, objects: Mapping[ObjectKey, T], /) -> None:
        """For the reflector."""
        await self._take_turns_over(self.store.replace(objects))
        self._synced.set()

    def upsert(self, key: ObjectKey, new: T, /) -> None:
        """For the reflector."""
        if (delta := self.store.upsert(key, new)) is not None:
            self._deliver(delta)

    def delete(self, key: ObjectKey, /) -> None:
        """For the reflector."""
        if (delta := self.store.delete(key)) is not None:
            self._deliver(delta)

    async def _resync_forever(self, period: float) -> None:
        await self.wait_synced()
        while True:
            await asyncio.sleep(period * (1.0 + RESYNC_JITTER * self._rng.random()))
            await self._take_turns_over(self._unchanged())

    def _unchanged(self) -> Iterator[Delta[T]]:
        for key in self.store.keys():  # noqa: SIM118 a list: the store may change meanwhile
            if (stored := self.store.get(key)) is not None:
                yield Delta("updated", key, stored, stored)

    async def _take_turns_over(self, deltas: Iterator[Delta[T]]) -> None:
        """Deliver them all, and give way to others after each `loop_budget` seconds."""
        loop = asyncio.get_running_loop()
        turn_ends = loop.time() + self._limits.loop_budget
        for delta in deltas:
            self._deliver(delta)
            if loop.time() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = loop.time() + self._limits.loop_budget

    def _deliver(self, delta: Delta[T]) -> None:
        for handler in self._handlers:
            try:
                self._tell(handler, delta)
            except Exception:  # supervised edge: one odd object must not blind us to all others
                _log.exception("handler failed", resource=self.name, key=str(delta.key))

    def _tell(self, handler: ResourceEventHandler[T], delta: Delta[T]) -> None:
        if delta.new is None:
            if delta.old is not None:
                handler.on_delete(delta.key, delta.old)
        elif delta.old is None:
            handler.on_add(delta.key, delta.new, initial=not self.has_synced)
        else:
            handler.on_update(delta.key, delta.old, delta.new)


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
