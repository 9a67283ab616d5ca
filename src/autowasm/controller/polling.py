"""PollGroups: what is polled, when, and what the last poll said (ADR 20). No I/O, no clock of its own.

AutoWasms of one namespace with the same source and Secret are one group and share each answer: a thousand of one tag cost what
one does. Invariants: a group's next poll stays where it is however often its objects are reconciled; an answer is told only
of the source and Secret that it was asked for; what a pin or a digest names is in no group.

Polling: asks sources with a `refreshInterval` whether they name something else by now (ADR 20). Leader only.

Not the plan (`polling.py`), nor the way of a change: what a poll found is fetched and checked here (ADR 5), and then published by the
reconciler as any other record (ADR 7). Invariants: a poll writes nothing; without a change, or where the source says "later",
nothing is reconciled either; all polls share one budget; none outlives leading.
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
from autowasm.backoff import Backoff
from autowasm.errors import AutoWasmError, SourceUnavailable, StorageError
from autowasm.kube.leaderelection import Leadership, while_leading
from autowasm.kube.resources import ObjectKey
from autowasm.settings import PollSettings
from autowasm.telemetry.metrics import Metrics
from autowasm.units import parse_duration


class PollRequest(NamedTuple):
    """What an answer is about: it holds for every AutoWasm that asks the same with the same login."""

    namespace: str
    source: str
    secret: str


@dataclass(frozen=True, slots=True)
class PollMember:
    """One AutoWasm. `interval` in seconds; `record`: what is published for it."""

    interval: float
    record: Record


@dataclass(slots=True, eq=False)
class PollGroup:
    """Times are the loop's."""

    asked: PollRequest
    source: Source
    due: float
    members: dict[ObjectKey, PollMember] = field(default_factory=dict)
    since: float = 0.0
    """When it was last asked, or began."""
    running: bool = False
    failures: int = 0
    latest: Record | None = None
    """What the source named at the last poll that got an answer."""
    refused: AutoWasmError | None = None
    """Why the last poll got none that will do, if the source said so itself; "later" is no such reason."""

    @property
    def interval(self) -> float:
        """The shortest that anybody asks for."""
        return min(member.interval for member in self.members.values())

    @property
    def reference(self) -> Record:
        """What the next answer is compared with."""
        return self.latest or next(iter(self.members.values())).record


def is_same(one: Record, other: Record) -> bool:
    """True if there is nothing to publish: of an object the bytes count, as servers change validators without reason."""
    return one == other or (not one.image and not other.image and one.sha256 == other.sha256)


def is_polled(autowasm: AutoWasm, record: Record) -> bool:
    """True if the user asks for it, and the source may come to name something else."""
    filter_ = autowasm.spec.filter
    if filter_.refresh_interval is None or filter_.sha256 is not None:
        return False
    if autowasm.image is not None and autowasm.image.is_pinned:
        return False
    return belongs_to(record, str(filter_.source))


class PollGroups:
    """All of them. The caller says what time it is."""

    def __init__(self, settings: PollSettings, *, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._groups: dict[PollRequest, PollGroup] = {}
        self._of: dict[ObjectKey, PollGroup] = {}
        self._turns: dict[str, float] = {}
        """By namespace that waits: when it was last asked for."""

    def put(self, key: ObjectKey, autowasm: AutoWasm, record: Record, *, now: float) -> PollGroup:
        """`record` is published for it. A new group is due at a random moment of its interval: a start is no burst."""
        asked = _asked(key, autowasm)
        interval = parse_duration(autowasm.spec.filter.refresh_interval or "")
        group = self._of.get(key)
        if group is not None and group.asked != asked:
            self.drop(key)
            group = None
        if group is None:
            group = self._groups.get(asked)
        if group is None:
            due = now + interval * self._rng.random()
            group = self._groups[asked] = PollGroup(
                asked, autowasm.spec.filter.source, due, since=now
            )
        before = group.members.get(key)
        group.members[key] = PollMember(interval, record)
        self._of[key] = group
        if before is None or before.interval != interval:
            # Asked for more often than before, it is not to wait for what was planned then.
            group.due = min(group.due, max(group.since + self._jittered(group.interval), now))
        learned = before is None or not is_same(before.record, record)
        if learned and group.latest is not None and not is_same(group.latest, record):
            group.latest = None  # somebody else resolved it since: what we know is of the past
        if learned:
            group.refused = None
        return group

    def drop(self, key: ObjectKey) -> None:
        """It is polled no more."""
        group = self._of.pop(key, None)
        if group is None:
            return
        group.members.pop(key, None)
        if not group.members:
            self._groups.pop(group.asked, None)

    def of(self, key: ObjectKey, autowasm: AutoWasm) -> PollGroup | None:
        """Its group, if its spec is still what is asked."""
        group = self._of.get(key)
        return group if group is not None and group.asked == _asked(key, autowasm) else None

    def is_current(self, group: PollGroup) -> bool:
        """False once nobody asks any more."""
        return self._groups.get(group.asked) is group

    def due(self, *, now: float) -> Iterator[PollGroup]:
        """Those to be asked now, in turns over namespaces, the one whose turn was longest ago first.

        So a thousand sources of one tenant delay another's single one by one turn.
        """
        by_namespace: dict[str, list[PollGroup]] = {}
        for group in self._groups.values():
            if group.due <= now and not group.running:
                by_namespace.setdefault(group.asked.namespace, []).append(group)
        for waiting in by_namespace.values():
            waiting.sort(key=lambda group: group.due, reverse=True)
        order = sorted(by_namespace, key=lambda namespace: self._turns.get(namespace, 0.0))
        self._turns = {namespace: self._turns.get(namespace, 0.0) for namespace in order}
        while by_namespace:
            for namespace in order:
                if namespace in by_namespace:
                    yield by_namespace[namespace].pop()
                    if not by_namespace[namespace]:
                        del by_namespace[namespace]

    def begin(self, group: PollGroup, *, now: float) -> None:
        """It is being asked."""
        group.running = True
        self._turns[group.asked.namespace] = now

    def answered(self, group: PollGroup, record: Record, *, now: float) -> None:
        """The source names this now."""
        group.latest, group.refused, group.failures = record, None, 0
        self._plan(group, self._jittered(group.interval), now=now)

    def failed(
        self, group: PollGroup, error: AutoWasmError, *, now: float, for_good: bool = True
    ) -> None:
        """It said nothing, or what will not do. `for_good` False: the failure is ours."""
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


def _asked(key: ObjectKey, autowasm: AutoWasm) -> PollRequest:
    return PollRequest(key.namespace, str(autowasm.spec.filter.source), autowasm.spec.secret or "")


_log = structlog.get_logger(__name__)


class PolledSource(Protocol):
    """The part of `ArtifactFetcher` that polls use."""

    async def has_moved(self, request: FetchRequest, known: Record) -> bool | None:
        """See `ArtifactFetcher`."""

    async def fetch(self, request: FetchRequest) -> Record:
        """See `ArtifactFetcher`."""


class PollResults(Protocol):
    """What the reconciler asks and tells."""

    def found(self, key: ObjectKey, autowasm: AutoWasm) -> Record | None:
        """What is to be published instead of what is; None: nothing."""

    def published(self, key: ObjectKey, autowasm: AutoWasm, record: Record) -> AutoWasmError | None:
        """This is in place now. Returns why the source's own news will not do, if it said so."""

    def forget(self, key: ObjectKey) -> None:
        """It is gone, cannot be read, or is another replica's matter."""


class NoPollResults:
    """Nothing is ever asked."""

    def found(self, key: ObjectKey, autowasm: AutoWasm) -> Record | None:
        """Nothing."""

    def published(self, key: ObjectKey, autowasm: AutoWasm, record: Record) -> AutoWasmError | None:
        """Nothing."""

    def forget(self, key: ObjectKey) -> None:
        """Nothing."""


class Poller:
    """One for the process. `on_change` is called with the key of each object for which a poll changed something."""

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

    def _begin(self, group: PollGroup, tasks: asyncio.TaskGroup, *, now: float) -> None:
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

    async def _poll(self, group: PollGroup, key: ObjectKey) -> None:
        with structlog.contextvars.bound_contextvars(key=str(key)):
            try:
                outcome = await self._ask(group, key)
            except Exception as error:  # supervised edge: a bug fails one poll, not the process
                _log.exception("poll failed unexpectedly")
                self._metrics.unexpected_errors.labels("poll").inc()
                internal = AutoWasmError(f"internal error: {type(error).__name__}: {error}")
                outcome = self._failed(group, internal, for_good=False)
        self._metrics.polls.labels(outcome).inc()

    async def _ask(self, group: PollGroup, key: ObjectKey) -> str:
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

    def _answered(self, group: PollGroup, record: Record, *, news: bool, relief: bool) -> str:
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
