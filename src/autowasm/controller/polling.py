"""Poller: checks whether sources with a `refreshInterval` now name another module (ADR 20). Leader only.

PollGroups is the schedule, without I/O or a clock of its own. A poll fetches and checks a new module (ADR 5); the reconciler
publishes it like any other record (ADR 7). Invariants: a poll writes nothing; without a change, or after a temporary error
of the source, nothing is reconciled; all polls share one budget, and none outlives leading; reconciles do not move a group's
next poll; an answer applies only to the source and Secret of its request; a source with `sha256` or a digest is in no group.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import structlog

from autowasm.api.record import Record, belongs_to
from autowasm.api.v1alpha1 import AutoWasm, Source
from autowasm.artifacts.source import FetchRequest
from autowasm.errors import AutoWasmError, SourceUnavailable, StorageError
from autowasm.flowcontrol import Backoff, TokenBucket
from autowasm.kube.leaderelection import Leadership, while_leading
from autowasm.kube.resources import ObjectKey
from autowasm.settings import PollSettings
from autowasm.telemetry.metrics import Metrics
from autowasm.units import parse_duration


class PollRequest(NamedTuple):
    """Key of a poll: its answer applies to every AutoWasm with the same source and Secret."""

    namespace: str
    source: str
    secret: str


@dataclass(frozen=True, slots=True)
class PollMember:
    """One AutoWasm. `interval` in seconds; `record` is the published one."""

    interval: float
    record: Record


@dataclass(slots=True, eq=False)
class PollGroup:
    """AutoWasms of one namespace with the same source and Secret, which share each answer. Times are the loop's.

    A thousand AutoWasms of one tag cost as much as one.
    """

    request: PollRequest
    source: Source
    due: float
    members: dict[ObjectKey, PollMember] = field(default_factory=dict)
    since: float = 0.0
    """When the last poll, or the group, began."""
    running: bool = False
    failures: int = 0
    latest: Record | None = None
    """The record of the last successful poll."""
    refused: AutoWasmError | None = None
    """The permanent error of the last poll, if the source reported one; a temporary error does not count."""

    @property
    def interval(self) -> float:
        """The shortest interval of its members."""
        return min(member.interval for member in self.members.values())

    @property
    def reference(self) -> Record:
        """The record that the next answer is compared with."""
        return self.latest or next(iter(self.members.values())).record


def is_same(one: Record, other: Record) -> bool:
    """True if there is nothing to publish. For an object only the bytes count: servers change validators without reason."""
    return one == other or (not one.image and not other.image and one.sha256 == other.sha256)


def is_polled(autowasm: AutoWasm, record: Record) -> bool:
    """True if the user requested polling and the source may name another module later."""
    filter_ = autowasm.spec.filter
    if filter_.refresh_interval is None or filter_.sha256 is not None:
        return False
    if autowasm.image is not None and autowasm.image.is_pinned:
        return False
    return belongs_to(record, str(filter_.source))


class PollGroups:
    """All groups. The caller passes the time."""

    def __init__(self, settings: PollSettings, *, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._groups: dict[PollRequest, PollGroup] = {}
        self._of: dict[ObjectKey, PollGroup] = {}
        self._last_polls: dict[str, float] = {}
        """By waiting namespace: the time of its last poll."""

    def put(self, key: ObjectKey, autowasm: AutoWasm, record: Record, *, now: float) -> PollGroup:
        """Add an AutoWasm with its published `record`. A new group is due at a random time of its interval, to avoid a burst at start."""
        request = _request_of(key, autowasm)
        interval = parse_duration(autowasm.spec.filter.refresh_interval or "")
        group = self._of.get(key)
        if group is not None and group.request != request:
            self.drop(key)
            group = None
        if group is None:
            group = self._groups.get(request)
        if group is None:
            due = now + interval * self._rng.random()
            group = self._groups[request] = PollGroup(
                request, autowasm.spec.filter.source, due, since=now
            )
        before = group.members.get(key)
        group.members[key] = PollMember(interval, record)
        self._of[key] = group
        if before is None or before.interval != interval:
            # With a shorter interval, the group must not wait until the old due time.
            group.due = min(group.due, max(group.since + self._jittered(group.interval), now))
        learned = before is None or not is_same(before.record, record)
        if learned and group.latest is not None and not is_same(group.latest, record):
            group.latest = None  # another request resolved the source since: ours is outdated
        if learned:
            group.refused = None
        return group

    def drop(self, key: ObjectKey) -> None:
        """Stop polling the AutoWasm."""
        group = self._of.pop(key, None)
        if group is None:
            return
        group.members.pop(key, None)
        if not group.members:
            self._groups.pop(group.request, None)

    def of(self, key: ObjectKey, autowasm: AutoWasm) -> PollGroup | None:
        """The group of an AutoWasm, if its spec still has the group's source and Secret."""
        group = self._of.get(key)
        return group if group is not None and group.request == _request_of(key, autowasm) else None

    def is_current(self, group: PollGroup) -> bool:
        """False when the group has no members left."""
        return self._groups.get(group.request) is group

    def due(self, *, now: float) -> Iterator[PollGroup]:
        """The groups that are due, round robin over namespaces; the namespace with the oldest poll comes first.

        So a thousand sources of one tenant delay a single source of another tenant by one poll.
        """
        by_namespace: dict[str, list[PollGroup]] = {}
        for group in self._groups.values():
            if group.due <= now and not group.running:
                by_namespace.setdefault(group.request.namespace, []).append(group)
        for waiting in by_namespace.values():
            waiting.sort(key=lambda group: group.due, reverse=True)
        order = sorted(by_namespace, key=lambda namespace: self._last_polls.get(namespace, 0.0))
        self._last_polls = {namespace: self._last_polls.get(namespace, 0.0) for namespace in order}
        while by_namespace:
            for namespace in order:
                if namespace in by_namespace:
                    yield by_namespace[namespace].pop()
                    if not by_namespace[namespace]:
                        del by_namespace[namespace]

    def begin(self, group: PollGroup, *, now: float) -> None:
        """A poll of the group begins."""
        group.running = True
        self._last_polls[group.request.namespace] = now

    def answered(self, group: PollGroup, record: Record, *, now: float) -> None:
        """The source resolved to `record`."""
        group.latest, group.refused, group.failures = record, None, 0
        self._plan(group, self._jittered(group.interval), now=now)

    def failed(
        self, group: PollGroup, error: AutoWasmError, *, now: float, for_good: bool = True
    ) -> None:
        """The poll failed. `for_good` False: the failure is internal."""
        group.failures += 1
        if for_good and not isinstance(error, SourceUnavailable | StorageError):
            group.refused = error
        settings, interval = self._settings, group.interval
        backoff = Backoff(
            min(interval, settings.retry_first), max(interval, settings.max_retry), settings.jitter
        )
        wait = backoff.delay(group.failures, rng=self._rng)
        self._plan(group, max(wait, getattr(error, "retry_after", None) or 0.0), now=now)

    @staticmethod
    def _plan(group: PollGroup, wait: float, *, now: float) -> None:
        group.since, group.due = now, now + wait

    def _jittered(self, interval: float) -> float:
        return interval * (1.0 + self._settings.jitter * self._rng.uniform(-1.0, 1.0))


def _request_of(key: ObjectKey, autowasm: AutoWasm) -> PollRequest:
    return PollRequest(key.namespace, str(autowasm.spec.filter.source), autowasm.spec.secret or "")


_log = structlog.get_logger(__name__)


class PolledSource(Protocol):
    """The part of `ArtifactFetcher` that polls use."""

    async def has_moved(self, request: FetchRequest, known: Record) -> bool | None:
        """See `ArtifactFetcher`."""

    async def fetch(self, request: FetchRequest) -> Record:
        """See `ArtifactFetcher`."""


class PollResults(Protocol):
    """The interface between polls and the reconciler."""

    def found(self, key: ObjectKey, autowasm: AutoWasm) -> Record | None:
        """The record to publish instead of the current one; None: no change."""

    def published(self, key: ObjectKey, autowasm: AutoWasm, record: Record) -> AutoWasmError | None:
        """`record` is in place now. Returns the permanent error of the source's newer version, if there is one."""

    def forget(self, key: ObjectKey) -> None:
        """The object is gone or invalid, or another replica leads now."""


class NoPollResults:
    """PollResults without polling."""

    def found(self, key: ObjectKey, autowasm: AutoWasm) -> Record | None:
        """Nothing."""

    def published(self, key: ObjectKey, autowasm: AutoWasm, record: Record) -> AutoWasmError | None:
        """Nothing."""

    def forget(self, key: ObjectKey) -> None:
        """Nothing."""


class Poller:
    """One per process. Calls `on_change` with the key of each object for which a poll changed something."""

    def __init__(
        self,
        source: PolledSource,
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
        """See `PollResults`."""
        group = self._groups.of(key, autowasm)
        if group is None or group.latest is None:
            return None
        return None if is_same(group.latest, group.members[key].record) else group.latest

    def published(self, key: ObjectKey, autowasm: AutoWasm, record: Record) -> AutoWasmError | None:
        """See `PollResults`."""
        if not is_polled(autowasm, record):
            self._groups.drop(key)
            return None
        return self._groups.put(key, autowasm, record, now=_now()).refused

    def forget(self, key: ObjectKey) -> None:
        """See `PollResults`."""
        self._groups.drop(key)

    async def run(self, leadership: Leadership) -> None:
        """Poll due groups while leading, forever."""
        await while_leading(leadership, self._lead)

    async def _lead(self) -> None:
        settings = self._settings
        bucket = TokenBucket(rate=settings.rate, burst=settings.burst, clock=_now)
        async with asyncio.TaskGroup() as tasks:
            while True:
                now = _now()
                for group in self._groups.due(now=now):
                    if self._running.total() >= settings.at_once:
                        break
                    namespace = group.request.namespace
                    if self._running[namespace] >= settings.max_per_namespace:
                        continue
                    if not bucket.try_acquire():
                        break
                    self._begin(group, tasks, now=now)
                await asyncio.sleep(settings.check_interval)

    def _begin(self, group: PollGroup, tasks: asyncio.TaskGroup, *, now: float) -> None:
        namespace, key = group.request.namespace, next(iter(group.members))

        def ended(_: asyncio.Task[None]) -> None:  # cancelled before it ran, too
            group.running = False
            self._running[namespace] -= 1
            if not self._running[namespace]:
                del self._running[namespace]

        self._groups.begin(group, now=now)
        self._running[namespace] += 1
        task = tasks.create_task(self._poll(group, key), name=f"poll {key}")
        task.add_done_callback(ended)

    async def _poll(self, group: PollGroup, key: ObjectKey) -> None:
        with structlog.contextvars.bound_contextvars(key=str(key)):
            try:
                outcome = await self._query(group, key)
            except Exception as error:  # supervised edge: a bug fails one poll, not the process
                _log.exception("poll failed unexpectedly")
                self._metrics.unexpected_errors.labels("poll").inc()
                internal = AutoWasmError(f"internal error: {type(error).__name__}: {error}")
                outcome = self._failed(group, internal, for_good=False)
        self._metrics.polls.labels(outcome).inc()

    async def _query(self, group: PollGroup, key: ObjectKey) -> str:
        """Poll the group. Returns the outcome for the metric."""
        if not self._groups.is_current(group):
            return "outdated"
        reference, before, refused = group.reference, group.latest, group.refused
        request = FetchRequest(
            namespace=group.request.namespace,
            owner=str(key),
            source=group.source,
            secret=group.request.secret or None,
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

    def _answered(self, group: PollGroup, record: Record, *, news: bool, relief: bool) -> str:
        """`news`: the answer is new. `relief`: the previous poll had failed permanently, which was reported."""
        outcome = "unchanged"
        for key, member in list(group.members.items()):
            if not is_same(record, member.record):
                outcome = "changed"
                if not news:  # reported, not published yet
                    continue
                _log.info(
                    "source has changed",
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

    def _failed(self, group: PollGroup, error: AutoWasmError, *, for_good: bool) -> str:
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
