"""RunTracker: after a change, reads the sidecars of an AutoWasm until it is known whether its module runs in them. Leader only.

`statsreader.py` reads, `runwatch.py` judges, `runningreport.py` counts, `podstatuswriter.py` writes. Invariants: only the leader reads;
only Pods of the informer that an AutoWasm matches are read; a Pod is read after its AutoWasm's filter changed and after the Pod
started, with growing pauses, until its module has run for `RunSettings.settle` or `RunSettings.window` has passed, and never after
that; one request serves all AutoWasms of a Pod. A new leader takes over the status of the same filter. While a staged rollout is in
progress, each Pod is judged by the filter that the EnvoyFilter in place has for it.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import structlog
from cachetools import TTLCache
from msgspec import UNSET

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import status as statuses
from autowasm.api.staged import Overridden, overridden
from autowasm.api.status import ConditionType
from autowasm.controller.interfaces import RecordEvent
from autowasm.controller.pods import runningreport
from autowasm.controller.pods.envoystats import Reading, SidecarStats
from autowasm.controller.pods.loadreport import epoch
from autowasm.controller.pods.podmatching import Pod, has_ended, has_override, in_steps
from autowasm.controller.pods.resend import changed_at
from autowasm.controller.pods.runningreport import RunningReport
from autowasm.controller.pods.runstate import RunReport, RunState
from autowasm.controller.pods.runwatch import BASELINE_AGE, Published, RunWatch
from autowasm.controller.pods.statsreader import StatsReader
from autowasm.kube.leaderelection import Leadership, while_leading
from autowasm.kube.resources import ObjectKey
from autowasm.settings import RunSettings
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

Document = Mapping[str, Any]
_STEP: Final = 500
"""Pods in one step: about half a millisecond."""
_KEPT: Final = 2_000
"""Readings that are kept as baselines for a later change: some 1 KiB each."""
_NOTICED: Final = 3.0
"""Seconds within which a change of an EnvoyFilter is noticed: a reading in this time may already show it."""
_BELIEVED: Final = RunReport(RunState.RUNNING, "runs the module")
_FOUND: Final = frozenset({RunState.CONFIGURATION_REFUSED, RunState.CRASHING})
"""States that are reported as an Event."""


class Workloads(Protocol):
    """Published filters and the Pods that should have them."""

    def document(self, key: ObjectKey) -> Document | None:
        """The AutoWasm."""

    def envoyfilter(self, key: ObjectKey) -> Document | None:
        """Our live EnvoyFilter."""

    def matched(self, key: ObjectKey) -> Iterable[Pod]:
        """The Pods that the AutoWasm selects and that have not ended. Pods may change during the iteration."""

    def pod(self, name: ObjectKey) -> Pod | None:
        """The Pod that has this name now."""

    def touch_pods(self, key: ObjectKey) -> None:
        """The report on the AutoWasm's Pods may have changed."""


@dataclass(slots=True)
class _Turn:
    """A scheduled reading of a Pod. Times are the loop's."""

    name: ObjectKey
    due: float
    pause: float
    opened: float
    noticed: float
    """When the change of its filter was noticed: a reading shortly before may already show the change."""
    since: float | None = None
    """The Pod's first reading; None: there was none yet."""


@dataclass(frozen=True, slots=True)
class _Filter:
    """One of the filters in an EnvoyFilter."""

    digest: str
    """Of its configuration."""
    published: Published
    sha256: str
    """Of the module."""


@dataclass(slots=True)
class _Followed:
    """A filter that some Pods should have. `noticed`: when it was first seen."""

    watch: RunWatch
    noticed: float


@dataclass(slots=True)
class _Watched:
    """One AutoWasm. Times are the loop's."""

    placed: Overridden
    base: str
    """The digest of the filter of Pods that have no other; empty: none, before the end of a first rollout."""
    override: str
    followed: dict[str, _Followed]
    """By digest."""
    version: object
    """Of the EnvoyFilter that was seen last."""
    has: dict[bytes, str] = field(default_factory=dict)
    """The digest of the filter by which each known Pod is judged."""
    turns: dict[bytes, _Turn] = field(default_factory=dict)
    """Pods that are not settled, by uid."""
    known: dict[bytes, ObjectKey] = field(default_factory=dict)
    """All Pods that are or were scheduled, or were taken over from a status."""
    is_behind: bool = True
    """Whether its Pods may have changed."""
    is_news: bool = False
    """Whether a state has changed since the last report."""
    told: set[RunState] = field(default_factory=set)
    """Failures that were reported as an Event."""
    states: Mapping[str, int] = field(default_factory=dict)

    def wanted(self, pod: Pod) -> str:
        """The digest of the filter that the Pod should have."""
        return self.override if has_override(self.placed, pod) else self.base

    def report_of(self, uid: bytes) -> RunReport | None:
        """The latest report on the Pod; None: not read since its filter changed."""
        followed = self.followed.get(self.has.get(uid, ""))
        return followed.watch.report_of(uid) if followed is not None else None

    def forget(self, uid: bytes) -> None:
        """The Pod is gone, or has another filter."""
        followed = self.followed.get(self.has.pop(uid, ""))
        if followed is not None:
            followed.watch.forget([uid])


class RunTracker:
    """One per process. Pass `report`, `pods_changed` and `published_changed` to the Workloads, open the reader, and `run` it."""

    def __init__(
        self,
        workloads: Workloads,
        reader: StatsReader,
        *,
        downloaded: Callable[[str, bytes], float],
        record_event: RecordEvent,
        metrics: Metrics,
        settings: RunSettings,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`downloaded`: when a Pod, by uid, downloaded a module, seconds since the epoch; 0: not known. `clock`: the reader's."""
        self._workloads = workloads
        self._reader = reader
        self._downloaded = downloaded
        self._record_event = record_event
        self._metrics = metrics
        self._settings = settings
        self._wall = wall
        self._clock = clock
        self._watched: dict[ObjectKey, _Watched] = {}
        self._changed: set[ObjectKey] = set()
        """Watched objects whose EnvoyFilter may have changed since the last check."""
        self._kept: TTLCache[bytes, SidecarStats] = TTLCache(_KEPT, BASELINE_AGE, timer=clock)
        """The last readings, by the uid of the Pod."""

    def pods_changed(self, key: ObjectKey) -> None:
        """The Pods that this object matches may have changed."""
        if (watched := self._watched.get(key)) is not None:
            watched.is_behind = True

    def published_changed(self, key: ObjectKey) -> None:
        """The EnvoyFilter of this object may have changed."""
        if key in self._watched:
            self._changed.add(key)

    async def report(self, key: ObjectKey) -> RunningReport | None:
        """The report on this object; None while nothing is published. Pods must be listed before."""
        watched = self._look(key)
        document = self._workloads.document(key)
        if watched is None or document is None:
            return None
        if watched.is_behind:
            await in_steps(self._refresh(key, watched))
        generation = (document.get("metadata") or {}).get("generation")
        wanted = watched.wanted
        found = await in_steps(
            runningreport.report(
                (pod for pod in self._workloads.matched(key) if wanted(pod)),
                watched.report_of,
                generation=generation if isinstance(generation, int) else 0,
                names=self._settings.max_named,
                is_settled=not watched.turns,
                what="the filter that they are to have"
                if len(watched.followed) > 1
                else "the module",
            )
        )
        watched.states = found.states
        return found

    async def run(self, leadership: Leadership) -> None:
        """Check every `interval` seconds while leading, forever."""
        await while_leading(leadership, self._lead)

    async def _lead(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._settings.interval)
                await self.check()
        finally:
            self._watched.clear()
            self._changed.clear()
            self._kept.clear()
            self._measure()

    async def check(self) -> None:
        """Detect changes, read the sidecars that are due, and schedule the reports that changed."""
        changed = self._changed
        self._changed = set()
        behind = [key for key, one in self._watched.items() if one.is_behind or key in changed]
        for step, key in enumerate(behind):
            with self._isolated(key=str(key)):
                watched = self._look(key)
                if watched is not None and watched.is_behind:
                    await in_steps(self._refresh(key, watched))
            if step % _STEP == _STEP - 1:
                await asyncio.sleep(0)
        due = await in_steps(self._due())
        if due:
            readings = await self._reader.read(list(due.values()))
            for uid, reading in readings.items():
                self._take(due[uid], reading)
        for key, watched in list(self._watched.items()):
            if watched.is_news and not self._is_early(watched):
                with self._isolated(key=str(key)):
                    watched.is_news = False
                    self._workloads.touch_pods(key)
                    await self.report(key)  # for the metrics: the status can wait
        self._measure()

    @contextmanager
    def _isolated(self, **about: str) -> Iterator[None]:
        try:
            yield
        except Exception:  # supervised edge: one object must not stop the others
            _log.exception("run report failed unexpectedly", **about)
            self._metrics.unexpected_errors.labels("proof_of_run").inc()

    def _look(self, key: ObjectKey) -> _Watched | None:
        """The watch state of this object, updated to the last change of its EnvoyFilter."""
        live, watched = self._workloads.envoyfilter(key), self._watched.get(key)
        metadata = (live or {}).get("metadata") or {}
        version = metadata.get("uid"), metadata.get("resourceVersion") or id(live)
        if live is not None and watched is not None and watched.version == version:
            return watched
        placed = overridden(live) if live is not None else None
        if live is None or placed is None or envoyfilters.record_of(dict(live)) is None:
            self._watched.pop(key, None)
            return None
        base, override = (
            _filter_of(config, live, key) if config is not None else None
            for config in (placed.base, placed.override)
        )
        filters = {one.digest: one for one in (base, override) if one is not None}
        if not filters:
            self._watched.pop(key, None)
            return None
        now = self._now()
        if watched is None:
            watched = self._watched[key] = _Watched(placed, "", "", {}, version)
        self._follow(watched, filters, now=now)
        watched.placed, watched.version = placed, version
        watched.base = base.digest if base is not None else ""
        watched.override = override.digest if override is not None else ""
        return watched

    def _follow(self, watched: _Watched, filters: Mapping[str, _Filter], *, now: float) -> None:
        """Follow these filters. `_refresh` schedules each Pod whose filter changed."""
        before = watched.followed
        if before.keys() == filters.keys():
            watched.is_behind = True  # other Pods may have the second filter
            return
        watched.is_behind = watched.is_news = True
        watched.told.clear()
        if len(before) == len(filters) == 1:
            self._replace(watched, *filters.values(), now=now)
            return
        watched.followed = {
            digest: before.get(digest)
            or _Followed(RunWatch(one.published, downloaded=self._downloads_of(one.sha256)), now)
            for digest, one in filters.items()
        }

    def _replace(self, watched: _Watched, new: _Filter, *, now: float) -> None:
        """All Pods should have another filter: their last readings become the baselines."""
        ((old, followed),) = watched.followed.items()
        followed.watch.change(
            new.published,
            before=self._clock() - _NOTICED,
            downloaded=self._downloads_of(new.sha256),
        )
        followed.noticed = now
        watched.followed = {new.digest: followed}
        for uid, name in watched.known.items():
            if watched.has.get(uid) == old:
                watched.has[uid] = new.digest
                watched.turns[uid] = _Turn(name, now, self._settings.pause, now, now)

    def _downloads_of(self, sha256: str) -> Callable[[Pod], float]:
        def downloaded(pod: Pod) -> float:
            return self._downloaded(sha256, pod.uid)

        return downloaded

    def _refresh(self, key: ObjectKey, watched: _Watched) -> Generator[None, None, None]:
        """Schedule each Pod that is new or has another filter, and forget Pods that are gone."""
        watched.is_behind = False
        seen: set[bytes] = set()
        new: list[Pod] = []
        now = self._now()
        for step, pod in enumerate(self._workloads.matched(key)):
            if step % _STEP == _STEP - 1:
                yield
            if not pod.injected:
                continue
            seen.add(pod.uid)
            if pod.uid not in watched.known:
                new.append(pod)
            elif watched.has.get(pod.uid, "") != watched.wanted(pod):
                self._assign(watched, pod, now=now, noticed=now)
        if not watched.known:
            new = yield from self._believe(key, watched, new)
        for pod in new:
            followed = watched.followed.get(watched.wanted(pod))
            noticed = followed.noticed if followed is not None else now
            self._assign(watched, pod, now=now, noticed=noticed)
        gone = watched.known.keys() - seen
        for uid in gone:
            del watched.known[uid]
            watched.turns.pop(uid, None)
            watched.forget(uid)

    def _assign(self, watched: _Watched, pod: Pod, *, now: float, noticed: float) -> None:
        """From now on, judge the Pod by the filter that it should have, and read the Pod if there is one."""
        uid, name, wanted = pod.uid, ObjectKey(pod.namespace, pod.name), watched.wanted(pod)
        watched.forget(uid)
        watched.known[uid] = name
        watched.turns.pop(uid, None)
        watched.is_news = True
        if wanted:
            watched.has[uid] = wanted
            watched.turns[uid] = _Turn(name, now, self._settings.pause, now, noticed)

    def _believe(
        self, key: ObjectKey, watched: _Watched, pods: list[Pod]
    ) -> Generator[None, None, list[Pod]]:
        """Take over the Pods that the status of an earlier leader reports as running. Returns the others."""
        document, live = self._workloads.document(key) or {}, self._workloads.envoyfilter(key) or {}
        status = statuses.read(document.get("status"))
        reported, condition = status.pods, status.condition(ConditionType.RUNNING)
        if reported is UNSET or reported.running is UNSET or condition is None:
            return pods
        written = epoch(reported.time)
        if (
            condition.observed_generation != (document.get("metadata") or {}).get("generation")
            or written < changed_at(live)
            or reported.injected - reported.running != len(reported.not_running)
        ):
            return pods
        named = {(one.namespace, one.name) for one in reported.not_running}
        believed: list[Pod] = []
        others: list[Pod] = []
        for step, pod in enumerate(pods):
            if step % _STEP == _STEP - 1:
                yield
            ran = 0 < pod.started < written and (pod.namespace, pod.name) not in named
            ran = ran and bool(watched.wanted(pod))
            (believed if ran else others).append(pod)
        if len(believed) > reported.running:
            return pods
        for pod in believed:
            watched.known[pod.uid] = ObjectKey(pod.namespace, pod.name)
            if wanted := watched.wanted(pod):
                watched.has[pod.uid] = wanted
                watched.followed[wanted].watch.believe([pod], _BELIEVED)
        return others

    def _due(self) -> Generator[None, None, dict[bytes, Pod]]:
        """The Pods that are due, by uid; at most `batch`, the longest overdue first."""
        now, settings = self._now(), self._settings
        due: list[tuple[float, bytes, Pod]] = []
        for watched in list(self._watched.values()):
            for step, (uid, turn) in enumerate(list(watched.turns.items())):
                if step % _STEP == _STEP - 1:
                    yield
                if turn.due > now:
                    continue
                pod = self._workloads.pod(turn.name)
                if pod is None or pod.uid != uid or not pod.addresses or has_ended(pod):
                    self._delay(turn, now)  # nothing to read yet, or no longer
                    continue
                due.append((turn.due, uid, pod))
        due.sort(key=lambda one: one[:2])
        return {uid: pod for _, uid, pod in due[: settings.batch]}

    def _delay(self, turn: _Turn, now: float) -> None:
        turn.due = now + turn.pause
        turn.pause = min(2 * turn.pause, self._settings.longest)

    def _take(self, pod: Pod, reading: Reading) -> None:
        """Judge the reading for each object for which this Pod is due."""
        for key, watched in self._watched.items():
            if pod.uid in watched.turns:
                with self._isolated(key=str(key)):
                    self._judge(key, watched, pod, reading)
        if isinstance(reading, SidecarStats):
            self._kept[pod.uid] = reading

    def _judge(self, key: ObjectKey, watched: _Watched, pod: Pod, reading: Reading) -> None:
        now, turn = self._now(), watched.turns[pod.uid]
        followed = watched.followed.get(watched.has.get(pod.uid, ""))
        if followed is None:
            return  # its filter changed after the reading began, so it is read again
        watch = followed.watch
        kept = self._kept.get(pod.uid)
        since_noticed = now - turn.noticed + _NOTICED
        if kept is not None and self._clock() - kept.read_at < since_noticed:
            kept = None  # it may have been made after the change
        before = watch.report_of(pod.uid)
        found = watch.take(pod, reading, now=self._wall(), kept=kept)
        if before is None or (before.state, before.message) != (found.state, found.message):
            watched.is_news = True
        if found.state in _FOUND and found.state not in watched.told:
            watched.told.add(found.state)
            self._tell(key, pod, found)
        if turn.since is None:
            turn.since = now
        runs = found.state is RunState.RUNNING
        if now - turn.since >= (self._settings.settle if runs else self._settings.window):
            del watched.turns[pod.uid]
            watch.settle(pod.uid)
            watched.is_news = watched.is_news or not watched.turns
        else:
            self._delay(turn, now)

    def _tell(self, key: ObjectKey, pod: Pod, found: RunReport) -> None:
        where = f"{pod.namespace}/{pod.name}"
        _log.warning(
            "module does not run",
            key=str(key),
            pod=where,
            state=found.state.value,
            detail=found.message,
        )
        document = self._workloads.document(key)
        if document is not None:
            message = f"Pod {where} {found.message}"
            self._record_event(document, "Warning", found.state.value, message)

    def _is_early(self, watched: _Watched) -> bool:
        """Whether a report would only state that Pods are not known yet, which will soon change."""
        since = self._now() - self._settings.hold
        young = (uid for uid, turn in watched.turns.items() if turn.opened > since)
        reports = (watched.report_of(uid) for uid in young)
        return any(one is None or one.state.is_pending for one in reports)

    def _measure(self) -> None:
        totals = dict.fromkeys((state.value for state in RunState), 0)
        for watched in self._watched.values():
            for name, count in watched.states.items():
                totals[name] += count
        for name, count in totals.items():
            self._metrics.running_pods.labels(name).set(count)
        unsettled = sum(bool(watched.turns) for watched in self._watched.values())
        self._metrics.running_unsettled.set(unsettled)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _filter_of(config: Mapping[str, Any], live: Document, key: ObjectKey) -> _Filter:
    plugin = str(config.get("name") or "")
    generation = (live.get("metadata") or {}).get("generation")
    # In generation 1, no other configuration had this name; a name other than the object's has a digest.
    is_named = generation == 1 or plugin != key.name
    return _Filter(
        hashlib.sha256(msgspec.json.encode(config, order="sorted")).hexdigest(),
        Published(plugin, at=changed_at(live), is_named=is_named),
        _module_of(config),
    )


def _module_of(config: Mapping[str, Any]) -> str:
    """The sha256 of the module; empty for a manual edit of another form."""
    try:
        return str(config["vmConfig"]["code"]["remote"]["sha256"])
    except (KeyError, TypeError):
        return ""
