"""RunWatch: the latest RunReport of each Pod of one AutoWasm, judged against the last reading before the change.

`runtracker.py` keeps one for each AutoWasm and decides when to read. A rollout that needs its own times and Pods creates its own
RunWatch: `await read(pods)` before a step, `change(...)` with the plug-in's new name, and `await read(pods)` as often as needed.
Invariants: the baseline of a Pod is its last reading before the change, if that is recent enough to show the effect of the
change; a name without a digest alone proves nothing (`Acceptance`); it reads only when `read` is called.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from autowasm.controller.pods.envoystats import Reading, SidecarStats
from autowasm.controller.pods.podmatching import Pod
from autowasm.controller.pods.runstate import (
    Acceptance,
    RunReport,
    RunState,
    confirmed,
    judge,
)
from autowasm.controller.pods.statsreader import StatsReader

BASELINE_AGE: Final = 600.0
"""Seconds. An older reading shows too little about the effect of one change, because others came in between."""
_SKEW: Final = 10.0
"""Seconds by which the start of a process, known to within 5 s, must be later than a change dated by another machine's clock."""


@dataclass(frozen=True, slots=True)
class Published:
    """The filter that sidecars should run."""

    plugin: str
    """`config.name`."""
    at: float = 0.0
    """When it was published, seconds since the epoch; 0: not known."""
    is_named: bool = False
    """Whether a sidecar that knows the name has this configuration: the name has a digest, or no other configuration had it."""


@dataclass(slots=True)
class _PodRun:
    """One Pod. `reference`: the reading that listeners are compared with."""

    before: SidecarStats | None = None
    is_kept: bool = False
    """Whether `before` is from before the change."""
    is_seen: bool = False
    latest: SidecarStats | None = None
    report: RunReport | None = None
    """None: not read since the change."""
    shown: RunState | None = None
    """The state that the last reading showed."""


def _no_download(_pod: Pod) -> float:
    return 0.0


class RunWatch:
    """`downloaded`: when a Pod last downloaded the current module, seconds since the epoch; 0 if not known."""

    def __init__(
        self,
        published: Published,
        *,
        downloaded: Callable[[Pod], float] = _no_download,
    ) -> None:
        self.published = published
        self._downloaded = downloaded
        self._pods: dict[bytes, _PodRun] = {}

    def change(
        self,
        published: Published,
        *,
        before: float = math.inf,
        downloaded: Callable[[Pod], float] | None = None,
    ) -> None:
        """From now on, sidecars should run this. The last readings are the baselines if they began before `before`.

        `before`: on the monotonic clock of the reader; a later reading may already show the change.
        """
        self.published = published
        self._downloaded = downloaded or self._downloaded
        for uid, run in self._pods.items():
            is_kept = run.latest is not None and run.latest.read_at < before
            self._pods[uid] = _PodRun(before=run.latest if is_kept else None, is_kept=is_kept)

    async def read(
        self, pods: Iterable[Pod], reader: StatsReader, *, wall: Callable[[], float]
    ) -> Mapping[bytes, RunReport]:
        """Read each Pod once and judge it. `wall`: seconds since the epoch. Returns the reports by the uid of the Pod."""
        wanted = {pod.uid: pod for pod in pods}
        for uid, reading in (await reader.read(wanted.values())).items():
            self.take(wanted[uid], reading, now=wall())
        return {uid: run.report for uid in wanted if (run := self._pods[uid]).report is not None}

    def take(
        self, pod: Pod, reading: Reading, *, now: float, kept: SidecarStats | None = None
    ) -> RunReport:
        """Judge a reading of this Pod. `now`: seconds since the epoch; `kept`: an earlier reading, from before the change."""
        run = self._pods.setdefault(pod.uid, _PodRun())
        if isinstance(reading, SidecarStats):
            if run.latest is None:
                self._set_baseline(run, reading, kept, now)
            run.is_seen |= self._is_seen(run, pod, reading, now)
            run.latest = reading
        report = judge(run.before, reading, self.published.plugin, acceptance=self._acceptance(run))
        run.report = confirmed(report, run.shown)
        run.shown = report.state
        return run.report

    def _set_baseline(
        self, run: _PodRun, reading: SidecarStats, kept: SidecarStats | None, now: float
    ) -> None:
        """Called at the first reading since the change."""
        before = run.before or kept
        if before is not None and reading.read_at - before.read_at <= BASELINE_AGE:
            run.before, run.is_kept = before, True
            return
        run.is_kept = False
        # A process that started later has counted everything after the change.
        is_younger = self._started_since(reading, now)
        run.before = SidecarStats(read_at=reading.read_at) if is_younger else reading

    def _started_since(self, reading: SidecarStats, now: float) -> bool:
        at = self.published.at
        return at > 0 and reading.uptime is not None and now - reading.uptime > at + _SKEW

    def _is_seen(self, run: _PodRun, pod: Pod, reading: SidecarStats, now: float) -> bool:
        """Whether the sidecar is known to have accepted a listener update after the publication."""
        at = self.published.at
        if self._started_since(reading, now) or 0 < at < self._downloaded(pod):
            return True
        if run.before is not None and _count(reading) != _count(run.before):
            return True
        # A kept baseline with the same count proves that there was no change.
        return not run.is_kept and bool(reading.draining or reading.warming)

    def _acceptance(self, run: _PodRun) -> Acceptance:
        plugin = self.published.plugin
        if self.published.is_named:
            return Acceptance.BY_NAME
        if run.is_kept and run.before is not None and run.before.reloads_of(plugin) is None:
            return Acceptance.BY_NAME
        if run.is_seen:
            return Acceptance.SEEN
        return Acceptance.NOT_SEEN if run.is_kept else Acceptance.UNKNOWN

    def believe(self, pods: Iterable[Pod], report: RunReport) -> None:
        """Take over the reports on these Pods from the status of an earlier leader."""
        for pod in pods:
            self._pods.setdefault(pod.uid, _PodRun()).report = report

    def report_of(self, uid: bytes) -> RunReport | None:
        """The latest report on this Pod; None: not read since the change."""
        run = self._pods.get(uid)
        return run.report if run is not None else None

    def settle(self, uid: bytes) -> None:
        """The Pod is not read any more: keep its report, drop its readings."""
        run = self._pods[uid]
        run.before, run.latest, run.is_kept = None, None, False

    def forget(self, gone: Iterable[bytes]) -> None:
        """These Pods are gone, by uid."""
        for uid in gone:
            self._pods.pop(uid, None)

    @property
    def uids(self) -> frozenset[bytes]:
        """The uids of all Pods with a report or a baseline."""
        return frozenset(self._pods)


def _count(stats: SidecarStats) -> int:
    return stats.listeners_changed or 0
