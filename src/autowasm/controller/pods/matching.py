"""Which Pods an AutoWasm's selector matches, counted as Pods come and go (`status.pods`).

Not the choice of sidecars: Istio makes that from the EnvoyFilter's workloadSelector; this counts what it will choose.
Pods are counted by (namespace, label set), so an AutoWasm looks at label sets, never at Pods. Invariant: the counts are
those of the rows that were given to `pod_changed`, in any order of calls.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from autowasm.kube.pods import LabelSet, Pod
from autowasm.kube.resources import ObjectKey

_ENDED = frozenset({"Succeeded", "Failed"})
"""Phases of Pods that run no proxy any more."""


@dataclass(slots=True)
class PodCounts:
    """Pods that a selector matches, and those of them that have a sidecar."""

    matched: int = 0
    injected: int = 0


@dataclass(frozen=True, slots=True)
class PodSelector:
    """matchLabels as Istio reads them: in the root namespace they reach every namespace (`namespace` None)."""

    namespace: str | None
    labels: LabelSet

    def matches(self, namespace: str, labels: frozenset[tuple[str, str]]) -> bool:
        """True for Pods of this namespace with these labels, if every wanted pair is there."""
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
    """Whose selectors match them; None: to be looked up."""


class PodMatcher:
    """Both sides of the match: label sets of Pods, and selectors of AutoWasms."""

    def __init__(self) -> None:
        self._groups: dict[_Where, _Group] = {}
        self._by_pair: defaultdict[tuple[str, str], set[_Group]] = defaultdict(set)
        self._by_namespace: defaultdict[str, set[_Group]] = defaultdict(set)
        self._selectors: dict[ObjectKey, PodSelector] = {}
        self._watching: defaultdict[tuple[str, str] | None, set[ObjectKey]] = defaultdict(set)

    def set_selector(self, key: ObjectKey, selector: PodSelector) -> bool:
        """The selector of an AutoWasm, new or changed. False if it is the one that it had."""
        if self._selectors.get(key) == selector:
            return False
        self.remove_selector(key)
        self._selectors[key] = selector
        self._watching[self._rarest(selector)].add(key)
        self._forget_watchers(selector)
        return True

    def remove_selector(self, key: ObjectKey) -> None:
        """The AutoWasm is gone."""
        old = self._selectors.pop(key, None)
        if old is None:
            return
        self._forget_watchers(old)
        for pair in (*old.labels, None):  # which pair was the rarest then is not worth remembering
            keys = self._watching.get(pair)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._watching[pair]

    def pod_changed(self, old: Pod | None, new: Pod | None) -> frozenset[ObjectKey]:
        """Count a Pod that came, changed or went. Returns the AutoWasms whose counts changed."""
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
        """The Pods that the AutoWasm's selector matches now."""
        total = PodCounts()
        for group in self._matched(key):
            total.matched += group.matched
            total.injected += group.injected
        return total

    def pods(self, key: ObjectKey) -> Iterator[ObjectKey]:
        """The names of the Pods that the AutoWasm's selector matches now. Pods may come and go while it is iterated."""
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
        """The pair that the fewest label sets have: the selector is looked at only when a Pod has that one."""
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
    """Whether it runs no proxy any more."""
    return pod.phase in _ENDED


def _counted(pod: Pod | None) -> tuple[_Where, bool] | None:
    if pod is None or pod.phase in _ENDED:
        return None
    return (pod.namespace, pod.labels), pod.injected


def _discard(index: defaultdict, name: object, group: _Group) -> None:  # type: ignore[type-arg]
    index[name].discard(group)
    if not index[name]:
        del index[name]
