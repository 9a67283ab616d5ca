"""PodMatcher: no leftovers after Pods and selectors are removed, and the number of label sets that a lookup touches."""

import pytest

from autowasm.controller.pods.podmatching import (
    LabelSet,
    Pod,
    PodCounts,
    PodMatcher,
    PodSelector,
    has_ended,
)
from autowasm.kube.resources import ObjectKey

A, B, X = ("app", "a"), ("app", "b"), ("tier", "x")
KEY, OTHER = ObjectKey("one", "filter"), ObjectKey("one", "other")


def pod(
    name: str,
    *labels: tuple[str, str],
    namespace: str = "one",
    phase: str = "Running",
    injected: bool = True,
) -> Pod:
    return Pod(namespace, name, name.encode(), labels, "", phase, 1, injected)


def selector(*labels: tuple[str, str], namespace: str | None = "one") -> PodSelector:
    return PodSelector(namespace, labels)


@pytest.fixture
def matcher() -> PodMatcher:
    return PodMatcher()


@pytest.mark.parametrize(
    ("phase", "ended"),
    [("Succeeded", True), ("Failed", True), ("Running", False), ("Pending", False), ("", False)],
)
def test_a_pod_that_has_ended_does_not_count(matcher: PodMatcher, phase: str, ended: bool) -> None:
    matcher.set_selector(KEY, selector(A))
    one = pod("p", A, phase=phase)
    assert has_ended(one) is ended
    matcher.pod_changed(None, one)
    assert matcher.counts(KEY) == (PodCounts() if ended else PodCounts(1, 1))


def test_a_pod_that_ends_is_counted_no_more_and_its_watchers_are_notified(
    matcher: PodMatcher,
) -> None:
    matcher.set_selector(KEY, selector(A))
    matcher.pod_changed(None, pod("p", A))
    assert matcher.pod_changed(pod("p", A), pod("p", A, phase="Failed")) == {KEY}
    assert matcher.counts(KEY) == PodCounts()
    assert list(matcher.pods(KEY)) == []


def test_deleting_a_pod_keeps_the_counts_of_pods_with_the_same_labels(
    matcher: PodMatcher,
) -> None:
    matcher.set_selector(KEY, selector(A))
    pods = [pod("p", A), pod("q", A), pod("r", A, injected=False)]
    for one in pods:
        assert matcher.pod_changed(None, one) == {KEY}
    assert matcher.counts(KEY) == PodCounts(3, 2)
    assert matcher.pod_changed(pods[0], None) == {KEY}
    assert matcher.counts(KEY) == PodCounts(2, 1)
    assert sorted(matcher.pods(KEY)) == [ObjectKey("one", "q"), ObjectKey("one", "r")]
    matcher.pod_changed(pods[2], None)
    assert matcher.counts(KEY) == PodCounts(1, 1)
    assert list(matcher.pods(KEY)) == [ObjectKey("one", "q")]


def test_nothing_is_kept_of_pods_that_went(matcher: PodMatcher) -> None:
    """Labels with a hash of a template or a number of a Job come and go for as long as the process runs."""
    matcher.set_selector(KEY, selector(A))
    empty = _held(matcher)
    for number in range(20):
        one = pod("p", A, ("job", str(number)), namespace=f"namespace-{number}")
        matcher.pod_changed(None, one)
        assert _held(matcher) != empty
        matcher.pod_changed(one, None)
    assert _held(matcher) == empty


def test_a_label_set_stays_while_one_of_its_pods_does(matcher: PodMatcher) -> None:
    matcher.pod_changed(None, pod("p", A, X))
    with_one = _held(matcher)
    matcher.pod_changed(None, pod("q", A, X))
    matcher.pod_changed(pod("q", A, X), None)
    assert _held(matcher) == with_one
    for wanted in (selector(A), selector(X), selector(), selector(namespace=None)):
        matcher.set_selector(KEY, wanted)
        assert matcher.counts(KEY) == PodCounts(1, 1)


def test_of_two_label_sets_with_a_pair_in_common_the_other_is_still_found(
    matcher: PodMatcher,
) -> None:
    matcher.set_selector(KEY, selector(A))
    matcher.set_selector(OTHER, selector())
    matcher.pod_changed(None, pod("p", A, X))
    matcher.pod_changed(None, pod("q", A))
    matcher.pod_changed(pod("p", A, X), None)
    assert matcher.counts(KEY) == PodCounts(1, 1)
    assert matcher.counts(OTHER) == PodCounts(1, 1)


def test_an_unknown_pod_that_goes_changes_nothing(matcher: PodMatcher) -> None:
    matcher.set_selector(KEY, selector(A))
    assert matcher.pod_changed(pod("p", A), None) == frozenset()
    assert matcher.counts(KEY) == PodCounts()


def test_nothing_is_kept_of_selectors_that_went(matcher: PodMatcher) -> None:
    empty = _held(matcher)
    for wanted in (selector(A), selector(A, X), selector(), selector(namespace=None)):
        matcher.set_selector(KEY, wanted)
        assert _held(matcher) != empty
        matcher.remove_selector(KEY)
        assert _held(matcher) == empty
    matcher.remove_selector(KEY)  # twice


def test_a_selector_that_went_leaves_the_others_of_the_same_pair(matcher: PodMatcher) -> None:
    matcher.set_selector(KEY, selector(A))
    matcher.set_selector(OTHER, selector(A))
    assert matcher.pod_changed(None, pod("p", A)) == {KEY, OTHER}
    matcher.remove_selector(KEY)
    assert matcher.pod_changed(None, pod("q", A)) == {OTHER}
    assert matcher.counts(KEY) == PodCounts()
    assert not matcher.selects(KEY, pod("p", A))


def test_a_selector_that_changed_gets_its_new_pods_only(matcher: PodMatcher) -> None:
    matcher.pod_changed(None, pod("p", A))
    matcher.pod_changed(None, pod("q", B))
    assert matcher.set_selector(KEY, selector(A))
    assert matcher.pod_changed(None, pod("p2", A)) == {KEY}
    assert matcher.set_selector(KEY, selector(B))
    assert not matcher.set_selector(KEY, selector(B))
    assert matcher.pod_changed(None, pod("p3", A)) == frozenset()
    assert matcher.pod_changed(None, pod("q2", B)) == {KEY}
    matcher.remove_selector(KEY)
    assert matcher.pod_changed(None, pod("q3", B)) == frozenset()


def test_a_selector_is_looked_at_only_when_a_pod_has_its_rarest_pair(
    matcher: PodMatcher,
) -> None:
    for number in range(10):
        matcher.pod_changed(None, pod(f"p{number}", A, ("pod", str(number))))
    matcher.pod_changed(None, pod("rare", A, X))
    visited: list[LabelSet] = []

    class Watched(PodSelector):
        def matches(self, namespace: str, labels: frozenset[tuple[str, str]]) -> bool:
            visited.append(tuple(sorted(labels)))
            return super().matches(namespace, labels)

    matcher.set_selector(KEY, Watched("one", (A, X)))
    assert matcher.counts(KEY) == PodCounts(1, 1)
    assert visited == [(A, X)]
    matcher.pod_changed(None, pod("common", A, ("pod", "new")))
    assert visited == [(A, X)]


def _held(matcher: PodMatcher) -> tuple[int, ...]:
    """How much of each of its tables is filled."""
    return tuple(
        len(table)
        for table in (
            matcher._groups,
            matcher._by_pair,
            matcher._by_namespace,
            matcher._selectors,
            matcher._watching,
        )
    )
