"""LoadReport: the Pods that have the module, the Pods that do not, and why. Pure.

`downloadtracker.py` queries the replicas. Invariants: unknown states are reported as unknown; a Pod counts as fetched only if its
address, which no other Pod has, downloaded the whole module since it started; `NeverAsked` requires that every replica answered
and has kept its log since the Pod could first have asked. Not detected: a proxy container that restarts within its Pod, and a
clock skew between nodes above the start time of a Pod.
"""

import enum
import heapq
from collections.abc import Callable, Generator, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Final

from autowasm.api.status import Condition, ConditionType, MissingPod, Pods
from autowasm.controller.pods.podmatching import Pod
from autowasm.reasons import Reason


class MissingReason(enum.Enum):
    """Why a Pod is not known to have the module; the values appear in the status and in metric labels."""

    REFUSED = "Refused"
    NEVER_ASKED = "NeverAsked"
    NOT_INJECTED = "NotInjected"
    NOT_READY = "NotReady"
    WAITING = "Waiting"
    SHARED_ADDRESS = "SharedAddress"
    UNATTRIBUTED = "Unattributed"
    NOT_KNOWN = "NotKnown"


STEP: Final = 500
"""Pods in one step: about half a millisecond."""
_Missing = tuple[int, str, str, Pod]
"""Rank, namespace, name, and the Pod itself."""
_FACTS = frozenset({MissingReason.REFUSED, MissingReason.NEVER_ASKED, MissingReason.NOT_INJECTED})
"""With the other reasons, the Pod may still have the module, or may get it."""
_RANKS = {why: number for number, why in enumerate((*MissingReason,))}
_WORDS = {
    MissingReason.NOT_INJECTED: "has no sidecar",
    MissingReason.REFUSED: "requested it and got status {status}",
    MissingReason.NOT_READY: "is not ready and has not requested it",
    MissingReason.NEVER_ASKED: "has never requested it",
    MissingReason.WAITING: "may still request it",
    MissingReason.SHARED_ADDRESS: "shares its address with another Pod",
    MissingReason.UNATTRIBUTED: "has no logged download, but an address that belongs to no known Pod requested it",
    MissingReason.NOT_KNOWN: "has no logged download, but the download log is incomplete; its proxy may have the module in its own cache",
}


@dataclass(frozen=True, slots=True)
class LoadEvidence:
    """The evidence about one module. Times are seconds since the epoch."""

    fetched: Set[bytes]
    """Uids of Pods that downloaded it."""
    refused: Mapping[bytes, int]
    """Uid of a Pod whose last answer was an error → status of the error."""
    is_shared: Callable[[Pod], bool]
    """Whether another Pod has one of its addresses."""
    watched_since: float
    """The logs of all replicas are complete since then; infinity if one did not answer."""
    strangers: float
    """Last request from an address without a Pod; 0: none."""
    known: float
    """The time of the evidence."""
    published: float
    """Last change of the EnvoyFilter."""
    first: float
    """First fetch of the module for this object: no sidecar could know it earlier."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The report on one object."""

    pods: Pods
    loaded: Condition
    """Without `lastTransitionTime`."""
    states: Mapping[str, int]
    """Number of Pods by `MissingReason` value, and for `Fetched`."""
    is_kept: bool = False
    """Whether it is a previous leader's report, whose time stays."""


def why_missing(
    pod: Pod, evidence: LoadEvidence, *, now: float, grace: float
) -> MissingReason | None:
    """None if the Pod fetched the module. `grace`: seconds within which a sidecar asks."""
    if not pod.injected:
        return MissingReason.NOT_INJECTED
    if pod.uid in evidence.fetched:
        return None
    if pod.uid in evidence.refused:
        return MissingReason.REFUSED
    if evidence.is_shared(pod):
        return MissingReason.SHARED_ADDRESS
    if not pod.started:
        return MissingReason.NOT_READY
    if min(now, evidence.known) - max(pod.started, evidence.published) < grace:
        return MissingReason.WAITING
    if evidence.watched_since > max(pod.started, evidence.first):
        return MissingReason.NOT_KNOWN
    if evidence.strangers >= pod.started:
        return MissingReason.UNATTRIBUTED
    return MissingReason.NEVER_ASKED if pod.ready else MissingReason.NOT_READY


def report(
    pods: Iterable[Pod],
    evidence: LoadEvidence,
    *,
    generation: int,
    now: float,
    grace: float,
    names: int,
) -> Generator[None, None, LoadReport]:
    """Build the report, in steps. `pods`: matched Pods that have not ended. `names`: the maximum number of Pods to name."""
    matched = injected = fetched = 0
    missing: list[_Missing] = []
    states: dict[str, int] = {}
    for pod in pods:
        if matched % STEP == STEP - 1:
            missing = _worst(missing, names)
            yield
        matched += 1
        injected += pod.injected
        why = why_missing(pod, evidence, now=now, grace=grace)
        label = why.value if why is not None else Reason.FETCHED
        states[label] = states.get(label, 0) + 1
        if why is None:
            fetched += 1
        else:
            missing.append((_RANKS[why], pod.namespace, pod.name, pod))
    whys = list(MissingReason)
    named = [(pod, whys[order]) for order, _, _, pod in _worst(missing, names)]
    entries = tuple(
        MissingPod(
            namespace=pod.namespace,
            name=pod.name,
            reason=why.value,
            message=_words(pod, why, evidence),
        )
        for pod, why in named
    )
    counts = Pods(matched=matched, injected=injected, fetched=fetched, missing=entries)
    status, reason = _verdict(matched, {why for why in MissingReason if why.value in states})
    loaded = Condition(
        type=ConditionType.LOADED.value,
        status=status,
        reason=reason,
        message=_sentence(counts, fetched),
        observed_generation=generation,
    )
    return LoadReport(counts, loaded, states)


def _worst(missing: list[_Missing], names: int) -> list[_Missing]:
    return heapq.nsmallest(names, missing, key=lambda one: one[:3])


def _verdict(matched: int, found: Set[MissingReason]) -> tuple[str, str]:
    if not matched:
        return "Unknown", Reason.NO_PODS
    if not found:
        return "True", Reason.FETCHED
    worst = min(found, key=_RANKS.__getitem__)
    return ("False" if worst in _FACTS else "Unknown"), worst.value


def _words(pod: Pod, why: MissingReason, evidence: LoadEvidence) -> str:
    return _WORDS[why].format(status=evidence.refused.get(pod.uid, 0))


def _sentence(pods: Pods, fetched: int) -> str:
    if not pods.matched:
        return "the selector matches no Pod"
    text = f"{fetched} of {pods.injected} sidecars fetched the module"
    if not pods.missing:
        return text
    listed = "; ".join(f"{one.namespace}/{one.name} {one.message}" for one in pods.missing[:3])
    rest = pods.matched - fetched
    more = f"; and {rest - 3} more" if rest > 3 else ""
    return f"{text}; {rest} of {pods.matched} Pods not known to have it: {listed}{more}"
