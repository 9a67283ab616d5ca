"""Which Pods an AutoWasm's selector matches, counted as Pods come and go (`status.pods`).

Not the choice of sidecars: Istio makes that from the EnvoyFilter's workloadSelector; this counts what it will choose.
Pods are counted by (namespace, label set), so an AutoWasm looks at label sets, never at Pods. Invariant: the counts are
those of the rows that were given to `pod_changed`, in any order of calls.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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

    def matches(self, labels: frozenset[tuple[str, str]]) -> bool:
        """True if every wanted pair is there."""
        return labels.issuperset(self.labels)


_Where = tuple[str, LabelSet]


class PodMatcher:
    """Both sides of the match: label sets of Pods, and selectors of AutoWasms."""

    def __init__(self) -> None:
        self._counts: dict[_Where, PodCounts] = {}
        self._names: defaultdict[_Where, set[str]] = defaultdict(set)
        self._by_pair: defaultdict[tuple[str, str], set[_Where]] = defaultdict(set)
        self._by_namespace: defaultdict[str, set[_Where]] = defaultdict(set)
        self._selectors: dict[ObjectKey, PodSelector] = {}
        self._watching: defaultdict[tuple[str, str] | None, set[ObjectKey]] = defaultdict(set)

    def set_selector(self, key: ObjectKey, selector: PodSelector) -> bool:
        """The selector of an AutoWasm, new or changed. False if it is the one that it had."""
        if self._selectors.get(key) == selector:
            return False
        self.remove_selector(key)
        self._selectors[key] = selector
        self._watching[self._rarest(selector)].add(key)
        return True

    def remove_selector(self, key: ObjectKey) -> None:
        """The AutoWasm is gone."""
        old = self._selectors.pop(key, None)
        if old is None:
            return
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
        touched: set[ObjectKey] = set()
        for pod, step in ((before, -1), (after, 1)):
            if pod is not None:
                where, injected = pod
                self._count(where, step, injected=injected)
                self._name(where, pod is after, (new if pod is after else old))
                touched.update(self._watchers(where))
        return frozenset(touched)

    def counts(self, key: ObjectKey) -> PodCounts:
        """The Pods that the AutoWasm's selector matches now."""
        total = PodCounts()
        selector = self._selectors.get(key)
        if selector is None:
            return total
        for where in self._candidates(selector):
            if selector.namespace in {None, where[0]} and selector.matches(frozenset(where[1])):
                total.matched += self._counts[where].matched
                total.injected += self._counts[where].injected
        return total

    def pods(self, key: ObjectKey) -> Iterator[ObjectKey]:
        """The names of the Pods that the AutoWasm's selector matches now."""
        selector = self._selectors.get(key)
        if selector is None:
            return
        for where in self._candidates(selector):
            if selector.namespace in {None, where[0]} and selector.matches(frozenset(where[1])):
                yield from (ObjectKey(where[0], name) for name in self._names.get(where, ()))

    def selects(self, key: ObjectKey, pod: Pod) -> bool:
        """Whether the AutoWasm's selector matches the Pod."""
        selector = self._selectors.get(key)
        if selector is None or selector.namespace not in {None, pod.namespace}:
            return False
        return selector.matches(frozenset(pod.labels))

    def _name(self, where: _Where, came: bool, pod: Pod | None) -> None:
        if pod is None:
            return
        if came:
            self._names[where].add(pod.name)
        else:
            self._names[where].discard(pod.name)
            if not self._names[where]:
                del self._names[where]

    def _count(self, where: _Where, step: int, *, injected: bool) -> None:
        counts = self._counts.get(where)
        if counts is None:
            counts = self._counts[where] = PodCounts()
            self._by_namespace[where[0]].add(where)
            for pair in where[1]:
                self._by_pair[pair].add(where)
        counts.matched += step
        counts.injected += step if injected else 0
        if not counts.matched:
            del self._counts[where]
            _discard(self._by_namespace, where[0], where)
            for pair in where[1]:
                _discard(self._by_pair, pair, where)

    def _watchers(self, where: _Where) -> Iterator[ObjectKey]:
        labels = frozenset(where[1])
        for pair in (*where[1], None):
            for key in self._watching.get(pair, ()):
                selector = self._selectors[key]
                if selector.namespace in {None, where[0]} and selector.matches(labels):
                    yield key

    def _rarest(self, selector: PodSelector) -> tuple[str, str] | None:
        """The pair that the fewest label sets have: the selector is looked at only when a Pod has that one."""
        if not selector.labels:
            return None
        return min(selector.labels, key=lambda pair: len(self._by_pair.get(pair, ())))

    def _candidates(self, selector: PodSelector) -> Iterable[_Where]:
        pair = self._rarest(selector)
        if pair is not None:
            return self._by_pair.get(pair, ())
        if selector.namespace is None:
            return self._counts
        return self._by_namespace.get(selector.namespace, ())


def has_ended(pod: Pod) -> bool:
    """Whether it runs no proxy any more."""
    return pod.phase in _ENDED


def _counted(pod: Pod | None) -> tuple[_Where, bool] | None:
    if pod is None or pod.phase in _ENDED:
        return None
    return (pod.namespace, pod.labels), pod.injected


def _discard(index: defaultdict, name: object, where: _Where) -> None:  # type: ignore[type-arg]
    index[name].discard(where)
    if not index[name]:
        del index[name]
