"""judge(): whether every Pod of a step runs the target, and serves as well as the stable Pods. Pure.

Invariants: a reading counts only if it was made after the Pods of the step last changed; a Pod that cannot be read is never
healthy unless `onUnknown` allows it; a single failed request is no fault at the default ratio.
"""

import enum
import heapq
from dataclasses import dataclass
from typing import Final

from autowasm.api.status import MAX_PER_POD, PodRequests, RolloutStatus, RolloutVerdict
from autowasm.api.v1alpha1 import OnUnknown, Rollout
from autowasm.controller.pods.runstate import RunState
from autowasm.controller.rollout.observation import (
    UNREADABLE,
    Figures,
    Observation,
    PodObservation,
)
from autowasm.controller.rollout.selection import Choice

MIN_REQUESTS: Final = 100
"""A Pod with fewer requests is judged as if it had this many: its failures alone may already be too many, but their ratio is not used."""


class RolloutReason(enum.Enum):
    """`status.rollout.reason`: what a rollout waits for, or why it was aborted."""

    PODS_NOT_LISTED = "PodsNotListed"
    STABLE_LOST = "StableLost"
    NOT_PUBLISHED = "NotPublished"
    NOT_READ = "NotRead"
    POD_NOT_READY = "PodNotReady"
    NOT_DOWNLOADED = "NotDownloaded"
    NOT_ACCEPTED = RunState.NOT_ACCEPTED.value
    STARTING = RunState.STARTING.value
    STATS_UNREACHABLE = RunState.STATS_UNREACHABLE.value
    UNKNOWN = RunState.UNKNOWN.value
    PAUSE = "Pause"
    MODULE_PENDING = "ModulePending"
    PAUSED_BY_COMMAND = "PausedByCommand"

    CONFIGURATION_REFUSED = RunState.CONFIGURATION_REFUSED.value
    CRASHING = RunState.CRASHING.value
    FETCH_FAILED = RunState.FETCH_FAILED.value
    FAILURE_RATIO = "FailureRatio"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    ABORTED_BY_COMMAND = "AbortedByCommand"
    ABORTED_BEFORE = "AbortedBefore"


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a step is not healthy."""

    reason: RolloutReason
    message: str
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a step is healthy, and why not."""

    fault: Finding | None
    wait: Finding | None
    verdict: RolloutVerdict
    oldest: float = 0.0
    """Seconds since the oldest reading of a Pod that has to be proven."""

    @property
    def is_healthy(self) -> bool:
        """Whether there is neither a `fault` nor a `wait`."""
        return self.fault is None and self.wait is None


_WORDS: Final = {
    RunState.CONFIGURATION_REFUSED: "refused the configuration",
    RunState.CRASHING: "has a crashing module",
    RunState.FETCH_FAILED: "could not fetch the module",
    RunState.STARTING: "has not started the module yet",
    RunState.NOT_ACCEPTED: "has not accepted the new filter yet",
    RunState.STATS_UNREACHABLE: "does not answer on the statistics port",
    RunState.UNKNOWN: "does not show whether it runs the new filter",
}


def judge(state: RolloutStatus, observation: Observation, spec: Rollout) -> Judgement:
    """Judge the current step. `observation.pods` must be known."""
    pods = sorted(observation.pods or (), key=_name)
    choice, is_last = Choice(state.pods, state.groups, state.by), state.step == state.steps
    members = {one.uid for one in choice.members([each.candidate for each in pods])}
    chosen = [one for one in pods if is_last or one.candidate.uid in members]
    others = [one for one in pods if not is_last and one.candidate.uid not in members]
    fresh = [one for one in chosen if _is_fresh(one, state)]
    named = {pod.uid for pod in state.pods} if not is_last else set()
    required = [one for one in chosen if one.candidate.ready or one.candidate.uid in named]
    served = _total([one.figures for one in fresh])
    stable = _total([one.figures for one in others])
    limit = _limit(stable, _total([one.before for one in fresh]), spec)
    fault = _fault(fresh, served, limit)
    wait = _wait(required, state, observation, spec)
    proven = [one for one in required if _wait_for(one, state, spec) is None]
    few = any(one.figures.requests < MIN_REQUESTS for one in required)
    found = fault or wait
    verdict = RolloutVerdict(
        pods=len(required),
        proven=len(proven),
        requests=served.requests,
        failures=served.failures,
        stable_requests=stable.requests,
        stable_failures=stable.failures,
        is_by_time=few or not required,
        pod=found.pod if found is not None else "",
        per_pod=tuple(
            PodRequests(_name(one), one.figures.requests, one.figures.failures)
            for one in heapq.nsmallest(MAX_PER_POD, chosen, key=_rank)
        ),
    )
    return Judgement(fault, wait, verdict, max((one.age for one in required), default=0.0))


def _name(one: PodObservation) -> str:
    return f"{one.candidate.namespace}/{one.candidate.name}"


def _is_fresh(one: PodObservation, state: RolloutStatus) -> bool:
    return one.run is not None and one.age <= state.placed_seconds


def _total(figures: list[Figures]) -> Figures:
    return sum(figures, Figures())


def _limit(stable: Figures, before: Figures, spec: Rollout) -> float:
    """The highest acceptable share of failures. Without requests of stable Pods, it follows from the Pods' own requests before the target."""
    known = stable if stable.requests >= MIN_REQUESTS else stable + before
    return known.failures / max(known.requests, MIN_REQUESTS) + spec.max_failure_ratio


def _rank(one: PodObservation) -> tuple[float, int, str]:
    """Sorts the Pod with the largest share of failures first, by the rules of `_is_worse`."""
    figures = one.figures
    return -figures.failures / max(figures.requests, MIN_REQUESTS), -figures.failures, _name(one)


def _is_worse(figures: Figures, limit: float) -> bool:
    return figures.failures > limit * max(figures.requests, MIN_REQUESTS)


def _fault(fresh: list[PodObservation], served: Figures, limit: float) -> Finding | None:
    for one in fresh:
        if one.run is not None and one.run.is_failure:
            return _finding(one, one.run)
    for one in fresh:
        if _is_worse(one.figures, limit):
            message = f"Pod {_name(one)} failed {_ratio(one.figures)}, more than {limit:.2%}"
            return Finding(RolloutReason.FAILURE_RATIO, message, _name(one))
    if fresh and _is_worse(served, limit):
        worst = max(fresh, key=lambda one: one.figures.failures)
        message = (
            f"the Pods of the step failed {_ratio(served)}, more than {limit:.2%}; Pod {_name(worst)} failed "
            f"{_ratio(worst.figures)}"
        )
        return Finding(RolloutReason.FAILURE_RATIO, message, _name(worst))
    return None


def _ratio(figures: Figures) -> str:
    share = figures.failures / figures.requests if figures.requests else 1.0
    return f"{figures.failures} of {figures.requests} requests ({share:.2%})"


def _finding(one: PodObservation, run: RunState) -> Finding:
    message = f"Envoy of Pod {_name(one)} {one.message or _WORDS[run]}"
    return Finding(RolloutReason(run.value), message, _name(one))


def _wait(
    required: list[PodObservation], state: RolloutStatus, observation: Observation, spec: Rollout
) -> Finding | None:
    if not observation.is_published:
        return Finding(RolloutReason.NOT_PUBLISHED, "the EnvoyFilter of this step is not in place")
    found = (_wait_for(one, state, spec) for one in required)
    return next((finding for finding in found if finding is not None), None)


def _wait_for(one: PodObservation, state: RolloutStatus, spec: Rollout) -> Finding | None:
    """Why the Pod does not count as healthy yet; None: it is healthy."""
    name, run = _name(one), one.run
    if not one.candidate.ready:
        return Finding(RolloutReason.POD_NOT_READY, f"Pod {name} is not ready", name)
    if run is None or not _is_fresh(one, state):
        message = f"the statistics of Pod {name} have not been read since the step began"
        return Finding(RolloutReason.NOT_READ, message, name)
    if run is RunState.RUNNING:
        return None  # it has the module, also if Envoy had it in its cache and did not download it
    if run in UNREADABLE and spec.on_unknown is OnUnknown.CONTINUE:
        if one.downloaded is False:
            message = f"Pod {name} has not downloaded the module"
            return Finding(RolloutReason.NOT_DOWNLOADED, message, name)
        return None
    return _finding(one, run)
