"""The input of a staged rollout's state machine: the target, the EnvoyFilter in place, the Pods, the annotations. Pure.

StepReadings makes a PodObservation from the statistics of a Pod that this leader has read. A Pod is judged by two readings: the
baseline, which is the last one before it got the target, and the newest one. A refusal or a failed fetch counts when the reading before
the newest one shows it, too. Requests are counted from the start of a step.
Invariants: times are ages and durations, measured by a monotonic clock, so setting the system clock cannot make an old reading look
new; a baseline is never made after the Pod got the target; a new leader that did not see the time before has no baseline, and
counts requests from its first reading.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from autowasm.api.status import MAX_STAGED, RolloutVariant
from autowasm.controller.pods.envoystats import Reading, Requests, SidecarStats
from autowasm.controller.pods.runstate import RunReport, RunState, confirmed, judge
from autowasm.controller.rollout.selection import Candidate

UNREADABLE: Final = frozenset({RunState.STATS_UNREACHABLE, RunState.UNKNOWN})
"""The state of the target in this Pod is unknown: `onUnknown` decides."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The number of requests, and of those with a status of 500 or more."""

    requests: int = 0
    failures: int = 0

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(self.requests + other.requests, self.failures + other.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodObservation:
    """A Pod with a sidecar that the selector matches, with or without the filter of the target."""

    candidate: Candidate
    downloaded: bool | None = None
    """Whether it downloaded the target's module; None: unknown (ADR 23), also if Envoy had it in its cache."""
    run: RunState | None = None
    """None: not read."""
    age: float = math.inf
    """Seconds since `run` was read."""
    figures: Figures = Figures()
    """Since the step began."""
    before: Figures = Figures()
    """Requests until the Pod got the target, according to its proxy."""
    message: str = ""
    """The result of the statistics, as a clause whose subject is Envoy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The input of `advance` besides its own state."""

    target: RolloutVariant | None
    """The variant that the spec requests, with its generation; None while its module is not stored."""
    base: RolloutVariant | None = None
    """The variant of the EnvoyFilter in place for all proxies; None: there is no filter."""
    is_readable: bool = True
    """False: there is an EnvoyFilter in place, but its variant cannot be read."""
    found: frozenset[str] = frozenset()
    """Digests of the variants that can be rendered: of the spec, read from the EnvoyFilter, or remembered."""
    is_published: bool = False
    """Whether the EnvoyFilter in place is the one of the state, `placement(state)`."""
    pods: tuple[PodObservation, ...] | None = None
    """All Pods with a sidecar that the selector matches; None: not listed yet."""
    elapsed: float | None = None
    """Seconds since this leader's last observation; None: it is its first one."""
    watched: float = 0.0
    """Seconds for which this leader has counted the requests of the step's Pods. A new leader starts at 0."""
    capacity: int = MAX_STAGED
    """How many Pods the EnvoyFilter can name (`api.staged.capacity`)."""
    command: str = ""
    """The rollout annotation."""
    refresh: str = ""
    """The refresh annotation."""


_COMMAND: Final = re.compile(
    r"(?P<verb>[a-z]+)(?:@(?P<generation>[0-9]{1,18}))?(?:\s.*)?\Z", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Command:
    """A value of the rollout annotation: `VERB` or `VERB@GENERATION`, optionally followed by a blank and any text that makes it new."""

    verb: str
    generation: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Command | None":
        """None for a text without a verb."""
        found = _COMMAND.match(text)
        if found is None:
            return None
        generation = found["generation"]
        return cls(found["verb"], int(generation) if generation else None)


def by_uid(pods: tuple[PodObservation, ...]) -> Mapping[str, PodObservation]:
    """The observations by the Pods' uids."""
    return {one.candidate.uid: one for one in pods}


@dataclass(frozen=True, slots=True)
class _Latest:
    reading: Reading
    begun: float
    """Seconds of the monotonic clock at which the reading began, at the latest."""
    previous: Reading | None
    """The reading before this one."""


class StepReadings:
    """Readings by the Pods' uids. Times are those of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._before: dict[str, SidecarStats] = {}
        self._latest: dict[str, _Latest] = {}
        self._counted: dict[str, Requests] = {}
        self._placed: set[str] = set()
        self.counted_since: float | None = None
        """When counting of the step's requests began; None: nothing was read yet."""

    def begin_step(self, *, now: float) -> None:
        """Count requests from now on."""
        self._counted = {
            uid: one.reading.requests or Requests()
            for uid, one in self._latest.items()
            if isinstance(one.reading, SidecarStats)
        }
        self.counted_since = now if self._latest else None

    def add(self, readings: Mapping[str, Reading], *, plugin: str, begun: float) -> None:
        """Take over new readings; empty: there are no Pods. `plugin`: the target's name in the statistics. `begun`: when the first reading began."""
        for uid, reading in readings.items():
            earlier = self._latest.get(uid)
            self._latest[uid] = _Latest(reading, begun, earlier.reading if earlier else None)
            if not isinstance(reading, SidecarStats):
                continue
            self._counted.setdefault(uid, reading.requests or Requests())
            # A new leader does not know which Pods its predecessor gave the target.
            if uid not in self._placed and reading.reloads_of(plugin) is None:
                self._before[uid] = reading
        if self.counted_since is None:
            self.counted_since = begun

    def place(self, uids: Collection[str]) -> None:
        """These Pods get the target now, so later readings of them are not baselines."""
        self._placed.update(uids)

    def has_all(self, uids: Collection[str]) -> bool:
        """Whether each of these Pods was read or the reading failed."""
        return all(uid in self._latest for uid in uids)

    def retain(self, uids: Collection[str]) -> None:
        """Forget Pods that are gone."""
        known: tuple[dict[str, SidecarStats] | dict[str, _Latest] | dict[str, Requests], ...]
        known = (self._before, self._latest, self._counted)
        for each in known:
            for gone in each.keys() - set(uids):
                del each[gone]
        self._placed.intersection_update(uids)

    def observed(self, candidate: Candidate, *, plugin: str, now: float) -> PodObservation:
        """The observation of the Pod."""
        uid = candidate.uid
        latest = self._latest.get(uid)
        if latest is None:
            return PodObservation(candidate=candidate)
        before = self._before.get(uid)
        report = _judged(before, latest, plugin)
        return PodObservation(
            candidate=candidate,
            run=report.state,
            age=max(0.0, now - latest.begun),
            figures=self._figures(uid, latest.reading),
            before=_figures(before.requests if before is not None else None),
            message=report.message,
        )

    def evidence(self, uid: str) -> tuple[SidecarStats | None, Reading | None]:
        """The two readings by which the Pod is judged, for the log."""
        latest = self._latest.get(uid)
        return self._before.get(uid), latest.reading if latest is not None else None

    def _figures(self, uid: str, reading: Reading) -> Figures:
        if not isinstance(reading, SidecarStats) or reading.requests is None:
            return Figures()
        since = reading.requests.since(self._counted.get(uid, Requests()))
        return _figures(since if since is not None else reading.requests)  # Envoy was restarted


def _judged(before: SidecarStats | None, latest: _Latest, plugin: str) -> RunReport:
    report = judge(before, latest.reading, plugin)
    if latest.previous is None or not report.state.is_failure:
        return confirmed(report, None)
    return confirmed(report, judge(before, latest.previous, plugin).state)


def _figures(requests: Requests | None) -> Figures:
    return Figures(requests.total, requests.failed) if requests is not None else Figures()
