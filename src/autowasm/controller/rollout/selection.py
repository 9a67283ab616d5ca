"""The Pods of a step of a staged rollout: `choose`. Pure and deterministic.

Ready Pods come first, spread over workloads and nodes, in the order of a hash of their uids. Invariants: a chosen Pod stays
chosen while it exists; a choice adds no Pod beyond `size`; the result depends on no order of the input. Where the names do not
fit into one EnvoyFilter, whole workloads or nodes are chosen, which new Pods may enlarge later.
"""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autowasm.api.patches import Metadata
from autowasm.api.status import StagedGroup, StagedPod, StepUnit


@dataclass(frozen=True, slots=True)
class Candidate:
    """A Pod with a sidecar that the selector matches and that has not ended."""

    namespace: str
    name: str
    uid: str
    node: str = ""
    """`NODE_NAME` of its proxy."""
    workload: str = ""
    """`WORKLOAD_NAME` of its proxy: the Deployment's name, not the ReplicaSet's (istiod's `GetDeployMetaFromPod`)."""
    ready: bool = True

    @property
    def pod(self) -> StagedPod:
        """The Pod's name in the status."""
        return StagedPod(self.namespace, self.name, self.uid)

    def group(self, unit: StepUnit) -> StagedGroup | None:
        """Its workload or node; None if unknown."""
        if unit is StepUnit.NODE and self.node:
            return StagedGroup(self.node)
        if unit is StepUnit.WORKLOAD and self.workload:
            return StagedGroup(self.workload, self.namespace)
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """The Pods of a step, and the workloads or nodes that it includes as a whole."""

    pods: tuple[StagedPod, ...] = ()
    groups: tuple[StagedGroup, ...] = ()
    by: StepUnit = StepUnit.POD

    def members(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The candidates that have the new filter."""
        uids, groups = {pod.uid for pod in self.pods}, set(self.groups)
        return [one for one in candidates if one.uid in uids or one.group(self.by) in groups]

    def proxies(self) -> tuple[Metadata, ...]:
        """The node metadata by which istiod identifies their proxies."""
        pods = ({"NAME": pod.name, "NAMESPACE": pod.namespace} for pod in self.pods)
        if self.by is StepUnit.NODE:
            return (*pods, *({"NODE_NAME": group.name} for group in self.groups))
        groups = (
            {"WORKLOAD_NAME": group.name, "NAMESPACE": group.namespace} for group in self.groups
        )
        return (*pods, *groups)


def choose(candidates: Sequence[Candidate], chosen: Choice, *, size: int, capacity: int) -> Choice:
    """`chosen` without the Pods that are gone, and with further Pods up to `size` in total.

    `capacity`: how many Pods and groups an EnvoyFilter can name. With fewer ready Pods than `size`, the step stays smaller; a
    Pod that is not ready is chosen only where no Pod is ready.
    """
    # A StatefulSet's Pod that is recreated under the same name has the filter of the patch that names it.
    existing = {(one.namespace, one.name): one.pod for one in candidates}
    found = (existing.get((pod.namespace, pod.name)) for pod in chosen.pods)
    kept = Choice(tuple(pod for pod in found if pod is not None), chosen.groups, chosen.by)
    missing = size - len(kept.members(candidates))
    if missing <= capacity - len(kept.pods) - len(kept.groups):
        return _named(candidates, kept, most=missing)
    while True:  # a named Pod may make room for its workload: repeat until nothing is added, so that the next call adds nothing either
        chosen, kept = kept, _with_groups(candidates, kept, size=size, capacity=capacity)
        if len(kept.members(candidates)) == len(chosen.members(candidates)):
            return chosen


def _with_groups(
    candidates: Sequence[Candidate], kept: Choice, *, size: int, capacity: int
) -> Choice:
    """The choice with whole workloads or nodes, or with further names, whichever has more Pods."""
    units = [StepUnit.WORKLOAD, StepUnit.NODE] if not kept.groups else [kept.by]
    wholes = [_grouped(candidates, kept, unit, size=size, capacity=capacity) for unit in units]
    options = [kept, *wholes] if not kept.groups else wholes
    filled = [
        _named(
            candidates,
            option,
            most=min(
                size - len(option.members(candidates)),
                capacity - len(option.pods) - len(option.groups),
            ),
        )
        for option in options
    ]
    return max(filled, key=lambda option: len(option.members(candidates)))  # the first of equals


def _named(candidates: Sequence[Candidate], kept: Choice, *, most: int) -> Choice:
    """The choice with up to `most` further Pods by name."""
    members = kept.members(candidates)
    uids = {one.uid for one in members}
    others = [one for one in candidates if one.uid not in uids]
    eligible = [one for one in others if one.ready]
    if not eligible and not members:
        eligible = others
    added = _spread(eligible, members, Counter(map(_workload, candidates)), most=most)
    return Choice((*kept.pods, *(one.pod for one in added)), kept.groups, kept.by)


def _workload(candidate: Candidate) -> tuple[str, str]:
    return candidate.namespace, candidate.workload


def _order(uid: str) -> bytes:
    return hashlib.blake2b(uid.encode(), digest_size=8).digest()


_Bucket = tuple[tuple[str, str], str]
"""A workload and a node."""


def _spread(
    eligible: Iterable[Candidate],
    members: Iterable[Candidate],
    totals: Counter[tuple[str, str]],
    *,
    most: int,
) -> list[Candidate]:
    """Up to `most` Pods, one at a time, from the workload, then from the node, with the fewest members.

    The last Pod of a workload is chosen only after all other workloads are down to their last Pod.
    """
    by_workload, by_node = Counter(map(_workload, members)), Counter(one.node for one in members)
    buckets: defaultdict[_Bucket, list[tuple[bytes, str, str, Candidate]]] = defaultdict(list)
    for one in eligible:
        entry = (_order(one.uid), one.namespace, one.name, one)
        buckets[_workload(one), one.node].append(entry)
    for bucket in buckets.values():
        bucket.sort(key=lambda entry: entry[:3], reverse=True)

    def rank(key: _Bucket) -> tuple[bool, int, int, bytes]:
        workload, node = key
        has_last = by_workload[workload] + 1 >= totals[workload]
        return has_last, by_workload[workload], by_node[node], buckets[key][-1][0]

    heap = [(rank(key), key) for key in buckets]
    heapq.heapify(heap)
    found: list[Candidate] = []
    while heap and len(found) < most:
        known, key = heapq.heappop(heap)
        now = rank(key)
        if now != known:  # ranks only grow, so checking them later is early enough
            heapq.heappush(heap, (now, key))
            continue
        found.append(buckets[key].pop()[3])
        by_workload[key[0]] += 1
        by_node[key[1]] += 1
        if buckets[key]:
            heapq.heappush(heap, (rank(key), key))
    return found


def _grouped(
    candidates: Sequence[Candidate], kept: Choice, unit: StepUnit, *, size: int, capacity: int
) -> Choice:
    """The choice with further whole workloads or nodes, while the step has at most `size` Pods."""
    wholes: defaultdict[StagedGroup, list[Candidate]] = defaultdict(list)
    for one in candidates:
        group = one.group(unit)
        if group is not None:
            wholes[group].append(one)
    covered = {one.uid for one in kept.members(candidates)}
    pods, groups = kept.pods, kept.groups
    for group in sorted(wholes, key=lambda one: (_order(f"{one.namespace}/{one.name}"), one.name)):
        uids = {one.uid for one in wholes[group]}
        named = tuple(pod for pod in pods if pod.uid not in uids)
        adds = uids - covered
        if not adds or len(covered) + len(adds) > size or len(named) + len(groups) >= capacity:
            continue
        pods, groups, covered = named, (*groups, group), covered | uids
    return Choice(pods, groups, unit if groups else StepUnit.POD)
