"""Indexes of Pods: compact rows, the Pods that a selector matches (`status.pods`), the Pods of an address; in_steps (ADR 22).

Istio selects sidecars by the EnvoyFilter's workloadSelector; PodMatcher counts the Pods that it selects. Invariants: rows with
the same labels share one tuple, so replicas cost little and a selector checks each label set once; the counts match the rows
passed to `pod_changed`, in any order of calls; Pods that have ended have no address here, because addresses are reused.

During a staged rollout (ADR 39), two functions find the Pods that have the newer of two filters: `has_target` follows the status, which
determines the EnvoyFilter; `has_override` follows the EnvoyFilter in place.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET

from autowasm.api import status as statuses
from autowasm.api.staged import Overridden
from autowasm.api.status import RolloutPhase, StepUnit
from autowasm.kube.codec import Codec
from autowasm.kube.resources import ObjectKey

LabelSet = tuple[tuple[str, str], ...]
"""Labels as pairs sorted by key: hashable; `dict(labels)` for reading."""

ISTIO_SIDECAR: Final = frozenset({"istio-proxy"})
"""Names of the proxy's container, or of its native sidecar (an init container that keeps running)."""

_SHARED_LABEL_SETS: Final = 16_384
"""Entries per generation; two generations are kept. The label sets of past Jobs and rollouts expire with them."""


class Pod(msgspec.Struct, frozen=True, gc=False):
    """One row with the fields for matching and identification: some 400 bytes instead of 60 KB.

    It is in no reference cycle, so the garbage collector does not track it.
    """

    namespace: str
    name: str
    uid: bytes
    """16 bytes."""
    labels: LabelSet
    ips: str
    """All Pod IPs, separated by commas: a short string is half the size of a tuple with one string."""
    phase: str
    started: int
    """Seconds since the epoch at which the kubelet accepted the Pod; 0 if it has not yet."""
    injected: bool
    """Whether it has a sidecar."""
    ready: bool = True
    """The Pod's condition `Ready`; a Pod without that condition counts as ready."""
    node: str = ""
    """`NODE_NAME` of its proxy."""
    workload: str = ""
    """`WORKLOAD_NAME` of its proxy (`_workload`)."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Pod IPs in their order."""
        return tuple(self.ips.split(",")) if self.ips else ()


class _Owner(msgspec.Struct, gc=False):
    kind: str = ""
    name: str = ""
    controller: bool = False


class _Meta(msgspec.Struct, gc=False):
    name: str
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815 as on the wire
    labels: dict[str, str] | None = None
    generateName: str = ""  # noqa: N815
    ownerReferences: list[_Owner] = []  # noqa: N815


class _Container(msgspec.Struct, gc=False):
    name: str = ""


class _Spec(msgspec.Struct, gc=False):
    nodeName: str = ""  # noqa: N815
    containers: list[_Container] = []
    initContainers: list[_Container] = []  # noqa: N815


class _PodIp(msgspec.Struct, gc=False):
    ip: str = ""


class _Condition(msgspec.Struct, gc=False):
    type: str = ""
    status: str = ""


class _Status(msgspec.Struct, gc=False):
    phase: str = "Unknown"
    podIP: str = ""  # noqa: N815
    podIPs: list[_PodIp] = []  # noqa: N815
    startTime: datetime | None = None  # noqa: N815
    conditions: list[_Condition] = []


class _Wire(msgspec.Struct, gc=False):
    metadata: _Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


class _Sharing:
    """Returns one shared object for equal strings and label sets. Drops objects that were not used recently.

    Two generations, because the values do not show whether they are still in use; an early drop only costs memory.
    """

    def __init__(self, size: int = _SHARED_LABEL_SETS) -> None:
        self._size = size
        self._texts: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}
        self._young: dict[LabelSet, LabelSet] = {}
        self._old: dict[LabelSet, LabelSet] = {}

    def text(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def labels(self, labels: dict[str, str] | None) -> LabelSet:
        if not labels:
            return ()
        # An API server writes maps sorted by key, so the labels are nearly always found in the order in which they arrive.
        wanted: LabelSet = tuple(labels.items())
        known = self._young.get(wanted)
        if known is not None:
            return known
        wanted = tuple(sorted(wanted))
        known = self._young.get(wanted)
        if known is not None:
            return known
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
            self._texts, self._pairs = {}, {}
        known = self._old.get(wanted)
        if known is None:
            known = tuple(self._pair(pair) for pair in wanted)
        self._young[known] = known
        return known

    def _pair(self, pair: tuple[str, str]) -> tuple[str, str]:
        known = self._pairs.get(pair)
        if known is None:
            known = (self.text(pair[0]), self.text(pair[1]))
            self._pairs[known] = known
        return known


def pod_codec(*, sidecars: frozenset[str] = ISTIO_SIDECAR) -> Codec[Pod]:
    """Decodes Pods into rows. `sidecars`: container names of the proxy."""
    sharing = _Sharing()

    def row(wire: _Wire) -> Pod:
        meta, status = wire.metadata, wire.status
        started, workload = status.startTime, _workload(meta)
        return Pod(
            sharing.text(meta.namespace),
            meta.name,
            _uid(meta.uid),
            sharing.labels(meta.labels),
            status.podIP if len(status.podIPs) < 2 else ",".join(ip.ip for ip in status.podIPs),
            sharing.text(status.phase),
            int(started.timestamp()) if started is not None else 0,
            not sidecars.isdisjoint([container.name for container in wire.spec.containers])
            or not sidecars.isdisjoint([container.name for container in wire.spec.initContainers]),
            not [True for one in status.conditions if one.type == "Ready" and one.status != "True"],
            sharing.text(wire.spec.nodeName),
            workload if workload is meta.name else sharing.text(workload),
        )

    return Codec(_Wire, transform=row, meta=_meta)


def _meta(wire: _Wire) -> tuple[ObjectKey, str]:
    return ObjectKey(wire.metadata.namespace, wire.metadata.name), wire.metadata.resourceVersion


_CRON_JOB: Final = re.compile(r"(.+)-\d{8,10}")


def _workload(meta: _Meta) -> str:
    """The workload's name in its proxy: that of the Deployment, not of the ReplicaSet.

    Source: istio.io/istio, pkg/kube/controllers (`GetWorkloadMetaFromPod`), which the injector writes into `WORKLOAD_NAME`.
    """
    owner = next((one for one in meta.ownerReferences if one.controller), None)
    if owner is None or not meta.generateName:
        return meta.name
    labels = meta.labels or {}
    if owner.kind == "ReplicaSet":
        for label in ("pod-template-hash", "rollouts-pod-template-hash"):
            ending = labels.get(label)
            if ending and owner.name.endswith(f"-{ending}"):
                return owner.name.removesuffix(f"-{ending}")
    if owner.kind == "ReplicationController" and labels.get("deploymentconfig"):
        return labels["deploymentconfig"]
    if owner.kind == "Job" and (found := _CRON_JOB.fullmatch(owner.name)):
        return found[1]
    return owner.name


def _uid(text: str) -> bytes:
    try:
        uid = bytes.fromhex(text.replace("-", ""))  # `uuid.UUID` takes four times as long
    except ValueError:
        uid = b""
    # The API guarantees no format; only equality matters.
    return uid if len(uid) == 16 else text.encode()[:16].ljust(16, b"\0")


T = TypeVar("T")


async def in_steps(steps: Generator[None, None, T]) -> T:
    """Run the generator and return its result; each `yield` yields to the loop. Raises its exceptions.

    Not a thread: the work is pure Python, and a thread would hold the interpreter lock. Invariant: everything may change between
    two steps, so a step relies on no earlier state.
    """
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)


_ENDED = frozenset({"Succeeded", "Failed"})
"""Phases of Pods whose proxy has stopped."""


@dataclass(slots=True)
class PodCounts:
    """The number of Pods that a selector matches, and how many have a sidecar."""

    matched: int = 0
    injected: int = 0


@dataclass(frozen=True, slots=True)
class PodSelector:
    """matchLabels as Istio applies them: those of the root namespace select Pods in every namespace (`namespace` None)."""

    namespace: str | None
    labels: LabelSet

    def matches(self, namespace: str, labels: frozenset[tuple[str, str]]) -> bool:
        """True for a Pod of this namespace whose labels include every pair."""
        return self.namespace in {None, namespace} and labels.issuperset(self.labels)


_Where = tuple[str, LabelSet]


@dataclass(slots=True, eq=False)
class _Group:
    """The Pods of one namespace that have the same labels."""

    namespace: str
    labels: frozenset[tuple[str, str]]
    names: set[str] = field(default_factory=set)
    matched: int = 0
    injected: int = 0
    watchers: frozenset[ObjectKey] | None = None
    """Keys of the selectors that match them; None: not computed."""


class PodMatcher:
    """Matches label sets of Pods with selectors of AutoWasms.

    Pods are counted by (namespace, label set), so an AutoWasm checks label sets, never single Pods.
    """

    def __init__(self) -> None:
        self._groups: dict[_Where, _Group] = {}
        self._by_pair: defaultdict[tuple[str, str], set[_Group]] = defaultdict(set)
        self._by_namespace: defaultdict[str, set[_Group]] = defaultdict(set)
        self._selectors: dict[ObjectKey, PodSelector] = {}
        self._watching: defaultdict[tuple[str, str] | None, set[ObjectKey]] = defaultdict(set)

    def set_selector(self, key: ObjectKey, selector: PodSelector) -> bool:
        """Set the selector of an AutoWasm. False if it is unchanged."""
        if self._selectors.get(key) == selector:
            return False
        self.remove_selector(key)
        self._selectors[key] = selector
        self._watching[self._rarest(selector)].add(key)
        self._forget_watchers(selector)
        return True

    def remove_selector(self, key: ObjectKey) -> None:
        """The AutoWasm was deleted."""
        old = self._selectors.pop(key, None)
        if old is None:
            return
        self._forget_watchers(old)
        for pair in (*old.labels, None):  # by now, any pair may have been the rarest
            keys = self._watching.get(pair)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._watching[pair]

    def pod_changed(self, old: Pod | None, new: Pod | None) -> frozenset[ObjectKey]:
        """Count an added, changed or deleted Pod. Returns the AutoWasms whose counts changed."""
        before, after = _counted(old), _counted(new)
        if before == after:
            return frozenset()
        touched: frozenset[ObjectKey] = frozenset()
        if old is not None and before is not None:
            touched = self._remove(old, *before)
        if new is not None and after is not None:
            more = self._add(new, *after)
            touched = touched | more if touched else more
        return touched

    def counts(self, key: ObjectKey) -> PodCounts:
        """Counts of the Pods that the AutoWasm's selector matches now."""
        total = PodCounts()
        for group in self._matched(key):
            total.matched += group.matched
            total.injected += group.injected
        return total

    def pods(self, key: ObjectKey) -> Iterator[ObjectKey]:
        """The names of the Pods that the AutoWasm's selector matches now. Pods may change during the iteration."""
        for group in list(self._matched(key)):
            yield from (ObjectKey(group.namespace, name) for name in list(group.names))

    def selects(self, key: ObjectKey, pod: Pod) -> bool:
        """Whether the AutoWasm's selector matches the Pod."""
        selector = self._selectors.get(key)
        return selector is not None and selector.matches(pod.namespace, frozenset(pod.labels))

    def _matched(self, key: ObjectKey) -> Iterator[_Group]:
        selector = self._selectors.get(key)
        if selector is not None:
            for group in self._candidates(selector):
                if selector.matches(group.namespace, group.labels):
                    yield group

    def _add(self, pod: Pod, where: _Where, injected: bool) -> frozenset[ObjectKey]:
        group = self._groups.get(where)
        if group is None:
            group = self._groups[where] = _Group(pod.namespace, frozenset(pod.labels))
            self._by_namespace[pod.namespace].add(group)
            for pair in group.labels:
                self._by_pair[pair].add(group)
        group.matched += 1
        group.injected += injected
        group.names.add(pod.name)
        return self._watchers(group)

    def _remove(self, pod: Pod, where: _Where, injected: bool) -> frozenset[ObjectKey]:
        group = self._groups.get(where)
        if group is None:
            return frozenset()
        group.matched -= 1
        group.injected -= injected
        group.names.discard(pod.name)
        if group.matched <= 0:
            del self._groups[where]
            _discard(self._by_namespace, pod.namespace, group)
            for pair in group.labels:
                _discard(self._by_pair, pair, group)
        return self._watchers(group)

    def _watchers(self, group: _Group) -> frozenset[ObjectKey]:
        if group.watchers is None:
            group.watchers = frozenset(
                key
                for pair in (*group.labels, None)
                for key in self._watching.get(pair, ())
                if self._selectors[key].matches(group.namespace, group.labels)
            )
        return group.watchers

    def _forget_watchers(self, selector: PodSelector) -> None:
        for group in self._candidates(selector):
            group.watchers = None

    def _rarest(self, selector: PodSelector) -> tuple[str, str] | None:
        """The pair that the fewest label sets contain: only Pods with that pair are checked against the selector."""
        if not selector.labels:
            return None
        return min(selector.labels, key=lambda pair: len(self._by_pair.get(pair, ())))

    def _candidates(self, selector: PodSelector) -> Iterable[_Group]:
        pair = self._rarest(selector)
        if pair is not None:
            return self._by_pair.get(pair, ())
        if selector.namespace is None:
            return self._groups.values()
        return self._by_namespace.get(selector.namespace, ())


def has_ended(pod: Pod) -> bool:
    """Whether its proxy has stopped."""
    return pod.phase in _ENDED


def _counted(pod: Pod | None) -> tuple[_Where, bool] | None:
    if pod is None or pod.phase in _ENDED:
        return None
    return (pod.namespace, pod.labels), pod.injected


def _discard(index: defaultdict, name: object, group: _Group) -> None:  # type: ignore[type-arg]
    index[name].discard(group)
    if not index[name]:
        del index[name]


class PodAddressIndex:
    """Addresses of running Pods, updated by `pod_changed` from the informer."""

    def __init__(self) -> None:
        self._at: dict[str, frozenset[ObjectKey]] = {}

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """A Pod was added, changed or deleted."""
        before = old.ips if old is not None and not has_ended(old) else ""
        after = new.ips if new is not None and not has_ended(new) else ""
        if before == after and (old is None) == (new is None):
            return
        for pod, ips in ((old, before), (new, after)):
            if pod is None or not ips:
                continue
            key = ObjectKey(pod.namespace, pod.name)
            for address in pod.addresses:
                keys = self._at.get(address, frozenset())
                keys = keys | {key} if pod is new else keys - {key}
                if keys:
                    self._at[address] = keys
                else:
                    del self._at[address]

    def at(self, address: str) -> frozenset[ObjectKey]:
        """The Pods that have this address now."""
        return self._at.get(address, frozenset())

    def is_shared(self, pod: Pod) -> bool:
        """Whether another Pod has one of its addresses, for example the node's address."""
        return any(len(self.at(address)) > 1 for address in pod.addresses)


_IN_PROGRESS: Final = frozenset({RolloutPhase.PROGRESSING, RolloutPhase.PAUSED})


def everyone(_pod: Pod) -> bool:
    """All Pods: without a rollout in progress, and in its last step."""
    return True


def has_target(document: Mapping[str, Any]) -> Callable[[Pod], bool]:
    """Whether a Pod should have the newer module. `document`: the AutoWasm."""
    rollout = statuses.read(document.get("status")).rollout
    if rollout is UNSET or rollout.phase not in _IN_PROGRESS or rollout.step >= rollout.steps:
        return everyone
    pods = {(one.namespace, one.name) for one in rollout.pods}
    groups = {(one.namespace, one.name) for one in rollout.groups}
    unit = rollout.by

    def found(pod: Pod) -> bool:
        if (pod.namespace, pod.name) in pods:
            return True
        if unit is StepUnit.NODE:
            return ("", pod.node) in groups
        return unit is StepUnit.WORKLOAD and (pod.namespace, pod.workload) in groups

    return found


def has_override(placed: Overridden, pod: Pod) -> bool:
    """Whether the EnvoyFilter gives this Pod the second filter."""
    namespace = {"NAMESPACE": pod.namespace}
    return placed.has(
        {"NAME": pod.name, **namespace},
        {"NODE_NAME": pod.node},
        {"WORKLOAD_NAME": pod.workload, **namespace},
    )
