"""Polling: asks sources with a `refreshInterval` whether they name something else by now (ADR 20). Leader only.

Not the plan (`pollgroups.py`), nor the way of a change: what a poll found is fetched and checked here (ADR 5), and then published by the
reconciler as any other record (ADR 7). Invariants: a poll writes nothing; without a change, or where the source says "later",
nothing is reconciled either; all polls share one budget; none outlives leading.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import structlog

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.source import FetchRequest
from autowasm.controller.fetching.pollgroups import Group, PollGroups, is_polled, is_same
from autowasm.errors import AutoWasmError
from autowasm.kube.leaderelection import Leadership, while_leading
from autowasm.kube.resources import ObjectKey
from autowasm.settings import PollSettings
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class Source(Protocol):
    """The part of `ArtifactFetcher` that polls use."""

    async def has_moved(self, request: FetchRequest, known: Record) -> bool | None:
        """See `ArtifactFetcher`."""

    async def fetch(self, request: FetchRequest) -> Record:
        """See `ArtifactFetcher`."""


class Polls(Protocol):
    """What the reconciler asks and tells."""

    def found(self, key: ObjectKey, autowasm: AutoWasm) -> Record | None:
        """What is to be published instead of what is; None: nothing."""

    def published(self, key: ObjectKey, autowasm: AutoWasm, record: Record) -> AutoWasmError | None:
        """This is in place now. Returns why the source's own news will not do, if it said so."""

    def forget(self, key: ObjectKey) -> None:
        """It is gone, cannot be read, or is another replica's matter."""


class NoPolls:
    """Nothing is ever asked."""

    def found(self, key: ObjectKey, autowasm: AutoWasm) -> Record | None:
        """Nothing."""

    def published(self, key: ObjectKey, autowasm: AutoWasm, record: Record) -> AutoWasmError | None:
        """Nothing."""

    def forget(self, key: ObjectKey) -> None:
        """Nothing."""


class Polling:
    """One for the process. `on_change` is called with the key of each object for which a poll changed something."""

    def __init__(
        self,
        source: Source,
        *,
        settings: PollSettings,
        metrics: Metrics,
        on_change: Callable[[ObjectKey], None],
        groups: PollGroups | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._settings = settings
        self._metrics = metrics
        self._on_change = on_change
        self._groups = groups or PollGroups(settings)
        self._wall = wall
        self._running: Counter[str] = Counter()

    def found(self, key: ObjectKey, autowasm: AutoWasm) -> Record | None:
        """See `Polls`."""
        group = self._groups.of(key, autowasm)
        if group is None or group.latest is None:
            return None
        return None if is_same(group.latest, group.members[key].record) else group.latest

    def published(self, key: ObjectKey, autowasm: AutoWasm, record: Record) -> AutoWasmError | None:
        """See `Polls`."""
        if not is_polled(autowasm, record):
            self._groups.drop(key)
            return None
        return self._groups.put(key, autowasm, record, now=_now()).refused

    def forget(self, key: ObjectKey) -> None:
        """See `Polls`."""
        self._groups.drop(key)

    async def run(self, leadership: Leadership) -> None:
        """Poll what is due while leading, for ever."""
        await while_leading(leadership, self._lead)

    async def _lead(self) -> None:
        settings = self._settings
        allowed, before = float(settings.burst), _now()
        async with asyncio.TaskGroup() as tasks:
            while True:
                now = _now()
                allowed = min(allowed + settings.rate * (now - before), float(settings.burst))
                before = now
                for group in self._groups.due(now=now):
                    if allowed < 1 or self._running.total() >= settings.at_once:
                        break
                    namespace = group.asked.namespace
                    if self._running[namespace] >= settings.per_namespace:
                        continue
                    allowed -= 1
                    self._begin(group, tasks, now=now)
                await asyncio.sleep(settings.look)

    def _begin(self, group: Group, tasks: asyncio.TaskGroup, *, now: float) -> None:
        namespace, key = group.asked.namespace, next(iter(group.members))

        def ended(_: asyncio.Task[None]) -> None:  # cancelled before it ran, too
            group.running = False
            self._running[namespace] -= 1
            if not self._running[namespace]:
                del self._running[namespace]

        self._groups.begin(group, now=now)
        self._running[namespace] += 1
        task = tasks.create_task(self._poll(group, key), name=f"poll {key}")
        task.add_done_callback(ended)

    async def _poll(self, group: Group, key: ObjectKey) -> None:
        with structlog.contextvars.bound_contextvars(key=str(key)):
            try:
                outcome = await self._ask(group, key)
            except Exception as error:  # supervised edge: a bug fails one poll, not the process
                _log.exception("poll failed unexpectedly")
                self._metrics.unexpected_errors.labels("poll").inc()
                internal = AutoWasmError(f"internal error: {type(error).__name__}: {error}")
                outcome = self._failed(group, internal, for_good=False)
        self._metrics.polls.labels(outcome).inc()

    async def _ask(self, group: Group, key: ObjectKey) -> str:
        """The outcome, for the metric."""
        if not self._groups.is_current(group):
            return "outdated"
        reference, before, refused = group.reference, group.latest, group.refused
        request = FetchRequest(
            namespace=group.asked.namespace,
            owner=str(key),
            source=group.source,
            secret=group.asked.secret or None,
            known=reference,
        )
        try:
            moved = await self._source.has_moved(request, reference)
            record = reference if moved is False else await self._source.fetch(request)
        except AutoWasmError as error:
            return self._failed(group, error, for_good=True)
        if not self._groups.is_current(group):
            return "outdated"
        self._groups.answered(group, record, now=_now())
        news = refused is not None or before is None or not is_same(before, record)
        return self._answered(group, record, news=news, relief=refused is not None)

    def _answered(self, group: Group, record: Record, *, news: bool, relief: bool) -> str:
        """`news`: it was not known yet. `relief`: the answer before would not do, which had been told."""
        outcome = "unchanged"
        for key, member in list(group.members.items()):
            if not is_same(record, member.record):
                outcome = "changed"
                if not news:  # told, and not published yet
                    continue
                _log.info(
                    "source has moved",
                    key=str(key),
                    source=record.origin,
                    digest=record.sha256,
                    previous_digest=member.record.sha256,
                )
                self._on_change(key)
                continue
            self._metrics.objects.confirmed((key.namespace, key.name), self._wall())
            if relief:
                self._on_change(key)
        return outcome

    def _failed(self, group: Group, error: AutoWasmError, *, for_good: bool) -> str:
        if not self._groups.is_current(group):
            return "outdated"
        before = group.refused
        self._groups.failed(group, error, now=_now(), for_good=for_good)
        _log.warning(
            "poll failed",
            reason=error.reason,
            error=str(error),
            retry_in=round(group.due - group.since, 1),
        )
        if str(group.refused) != str(before):
            for key in list(group.members):
                self._on_change(key)
        return error.reason


def _now() -> float:
    return asyncio.get_running_loop().time()
