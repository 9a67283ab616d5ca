"""LoadReport: the Pods that have the module, the Pods that do not, and why. No I/O.

DownloadEvidence has the known downloads of one module, from the replicas' download logs and a previous leader's status.
`downloadtracker.py` queries the replicas. Invariants: a download counts only for a Pod that has its address, which no other Pod may
have, and only after that Pod's start; a download whose address has no Pod yet is kept for a Pod that gets the address later; a status
is taken over only if it covers every Pod; unknown states are reported as unknown; a Pod counts as fetched only if its address
downloaded the whole module; `NeverAsked` requires that every replica answered and has kept its log since the Pod could first have
asked. Not detected: a proxy container that restarts within its Pod, and a clock skew between nodes above the start time of a Pod.
"""

import enum
import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET

from autowasm.api.status import Condition, ConditionType, MissingPod, Pods, Status
from autowasm.controller.pods.podmatching import Pod
from autowasm.reasons import Reason

NEVER = float("inf")
_LARGEST: Final = 2**53
_EVIDENCE_STEP: Final = 200
"""Addresses or Pods in one step of DownloadEvidence: some tenths of a millisecond."""
_PIECE: Final = 16 * 1024
"""Bytes of a document that are decoded at once: some 400 addresses, half a millisecond."""
_SEEN: Final = b'"seen":{'
_SAME: Final = 5.0
"""Seconds by which two answers may date one request differently: an answer contains an age, and takes time to arrive."""


@dataclass(frozen=True, slots=True)
class _Query:
    """The last requests of one address. Times are seconds since the epoch; 0: never."""

    fetched: float = 0.0
    refused: float = 0.0
    status: int = 0

    @property
    def last(self) -> float:
        return max(self.fetched, self.refused)


_NOTHING: Final = _Query()


@dataclass(slots=True)
class DownloadEvidence:
    """Evidence about one module. Times are seconds since the epoch."""

    fetched: dict[bytes, float] = field(default_factory=dict)
    """Uid of a Pod → time of the download; 0: before this leader."""
    refused: dict[bytes, int] = field(default_factory=dict)
    """Uid of a Pod whose last answer was an error → status of the error."""
    watched_since: float = NEVER
    """The logs of all replicas are complete since then; infinity if one did not answer."""
    strangers: dict[str, float] = field(default_factory=dict)
    """Address with requests but without a Pod → time of the last request; except addresses that had a Pod at the last query."""
    queried: bool = False
    """Whether the replicas were queried at all."""
    learned: float = 0.0
    """Time of the last query about this module."""
    is_behind: bool = False
    """Whether there was a download or an error since then, which may concern this module."""
    _unplaced: dict[str, _Query] = field(default_factory=dict)
    """By address: requests that match no Pod, or several."""
    _placed: dict[str, float] = field(default_factory=dict)
    """By address: the last time at which a Pod had it."""

    def learn(
        self,
        documents: Iterable[bytes],
        *,
        now: float,
        complete: bool,
        pods_at: Callable[[str], Iterable[Pod]],
    ) -> Iterator[None]:
        """Merge `documents` of the download logs, requested at `now`; `complete`: every replica answered.

        Runs in steps, so that a large mesh does not block the event loop; nothing changes before the last step.
        """
        new = DownloadEvidence(learned=now)
        ups: list[float] = []
        queries: dict[str, _Query] = {}
        for document in documents:
            found, addresses = read_log(document)
            ups.append(number(found.get("up")))
            for step, (address, ages) in enumerate(addresses):
                before = queries.get(address, _NOTHING)
                queries[address] = _latest(before, ages, now=now)
                if step % _EVIDENCE_STEP == 0:
                    yield
        new.watched_since = now - min(ups) if complete and ups else NEVER
        for step, (address, query) in enumerate(queries.items()):
            pods = list(pods_at(address))
            placed = self._placed.get(address, 0.0)
            if len(pods) == 1:
                new._note(pods[0], address, query)
            elif query.last <= placed + _SAME:
                new._placed[address] = placed
            else:
                new._unplaced[address] = query
                if not pods:
                    new.strangers[address] = query.last
            if step % _EVIDENCE_STEP == 0:
                yield
        self._take_over(new)

    def _take_over(self, new: "DownloadEvidence") -> None:
        for uid in new.refused:
            self.fetched.pop(uid, None)
        self.fetched.update(new.fetched)
        self.refused, self.queried = new.refused, True
        self.learned, self.is_behind = new.learned, False
        self.watched_since, self.strangers = new.watched_since, new.strangers
        self._unplaced, self._placed = new._unplaced, new._placed

    def place(self, pods: Iterable[Pod], *, is_shared: Callable[[Pod], bool]) -> Iterator[None]:
        """Assign requests that had no Pod yet to these Pods, by address. In steps."""
        for step, pod in enumerate(pods):
            if step % _EVIDENCE_STEP == _EVIDENCE_STEP - 1:
                yield
            if not self._unplaced:
                return
            for address in pod.addresses:
                if address in self._unplaced and not is_shared(pod):
                    self._note(pod, address, self._unplaced.pop(address))
                    self.strangers.pop(address, None)

    def _note(self, pod: Pod, address: str, query: _Query) -> None:
        if not pod.started:
            self._unplaced[address] = query  # its start time follows
            return
        self._placed[address] = query.last
        if query.refused >= pod.started and query.refused > query.fetched:
            # Also after a download: each filter chain sends its own request.
            self.refused[pod.uid] = query.status
            self.fetched.pop(pod.uid, None)
        elif query.fetched >= pod.started:
            self.fetched[pod.uid] = query.fetched

    def believe(self, previous: Status, sha256: str, pods: Iterable[Pod]) -> Iterator[None]:
        """Take over the fetched Pods of a status that states for every Pod whether it had this module. In steps."""
        module, reported = previous.module, previous.pods
        if (
            module is UNSET
            or reported is UNSET
            or reported.fetched is UNSET
            or module.sha256 != sha256
        ):
            return
        if reported.matched - reported.fetched != len(reported.missing):
            return
        missing = {(one.namespace, one.name) for one in reported.missing}
        written = epoch(reported.time)
        believed: list[bytes] = []
        for step, pod in enumerate(pods):
            if step % _EVIDENCE_STEP == _EVIDENCE_STEP - 1:
                yield
            if not pod.injected or not 0 < pod.started < written:
                continue
            if (pod.namespace, pod.name) not in missing:
                believed.append(pod.uid)
        if len(believed) <= reported.fetched:
            self.fetched = dict.fromkeys(believed, 0.0) | self.fetched


def epoch(text: str) -> float:
    """Seconds since the epoch; 0 for an invalid time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def decode_object(document: bytes) -> dict[str, Any]:
    """The JSON object of a replica; empty if invalid."""
    try:
        found = msgspec.json.decode(document)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_log(document: bytes) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    """A document of the download log: everything except `seen`, then the ages by address, decoded in pieces.

    A decoder blocks the event loop and every thread until it is done: 30 ms for 50 000 addresses. `seen` comes last, and its
    entries contain no objects, so it can be cut after any entry. Another form of `seen` is decoded at once.
    """
    begin = document.find(_SEEN)
    if begin >= 0 and document.endswith(b"}}"):
        found = decode_object(document[:begin] + _SEEN + b"}}")
        if found:
            return found, _in_pieces(document, begin + len(_SEEN), len(document) - 2)
    found = decode_object(document)
    return found, _by_address(found.get("seen"))


def _in_pieces(document: bytes, begin: int, end: int) -> Iterator[tuple[str, dict[str, Any]]]:
    while begin < end:
        cut = document.find(b'},"', min(begin + _PIECE, end), end)
        stop = cut + 1 if cut >= 0 else end
        try:
            piece = msgspec.json.decode(b"{" + document[begin:stop] + b"}")
        except (ValueError, RecursionError):
            # `seen` is not the last field, or the cut was inside a string or an object (no replica writes that), or the JSON is invalid.
            yield from _by_address(decode_object(document).get("seen"))
            return
        yield from _by_address(piece)
        begin = stop + 1


def _by_address(entries: object) -> Iterator[tuple[str, dict[str, Any]]]:
    for address, ages in entries.items() if isinstance(entries, dict) else ():
        if isinstance(ages, dict):
            yield address, ages


def _latest(before: _Query, ages: dict[str, Any], *, now: float) -> _Query:
    """The requests of an address, merged with those that another replica logged."""
    fetched, refused, status = before.fetched, before.refused, before.status
    if "ok" in ages:
        fetched = max(fetched, now - number(ages["ok"]))
    if "error" in ages and (at := now - number(ages["error"])) > refused:
        refused, status = at, int(number(ages.get("status")))
    return _Query(fetched, refused, status)


def number(value: object, default: float = 0.0) -> float:
    """The number; `default` if it is invalid, or larger than any that we write."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= _LARGEST else default


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
"""Pods in one step of `load_report`: about half a millisecond."""
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


def load_report(
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
