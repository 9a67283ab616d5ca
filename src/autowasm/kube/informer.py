"""client-go's Informer: a reflector, the store that it fills, and handlers that hear of every change.

Not a queue: handlers compute keys and add them to one. Invariants: handlers hear of a change after the store has it;
`has_synced` is true only once the first list is in the store and was delivered in full.
"""

import asyncio
import random
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

import structlog

from autowasm.kube.listwatch import ListerWatcher
from autowasm.kube.reflector import Reflector, ReflectorMetrics
from autowasm.kube.resources import ObjectKey
from autowasm.kube.store import Delta, ObjectStore
from autowasm.limits import KubeLimits

_log = structlog.get_logger(__name__)

T = TypeVar("T")
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
