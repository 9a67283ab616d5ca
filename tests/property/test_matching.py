"""Pods come, change and go, selectors too: the counts are those of a plain loop, and each object with changed Pods is notified."""

from hypothesis import given
from hypothesis import strategies as st

from autowasm.controller.pods.podmatching import Pod, PodCounts, PodMatcher, PodSelector, has_ended
from autowasm.kube.resources import ObjectKey

PAIRS = [("app", "a"), ("app", "b"), ("tier", "x"), ("zone", "1")]
LABELS = st.sets(st.sampled_from(PAIRS), max_size=3).map(lambda pairs: tuple(sorted(pairs)))
NAMESPACES = st.sampled_from(["one", "two"])
KEYS = st.builds(ObjectKey, NAMESPACES, st.sampled_from("pqrs"))
PODS = st.builds(
    lambda key, labels, phase, injected: Pod(
        key.namespace, key.name, key.name.encode(), labels, "", phase, 1, injected
    ),
    KEYS,
    LABELS,
    st.sampled_from(["Running", "Running", "Succeeded"]),
    st.booleans(),
)
SELECTORS = st.builds(PodSelector, st.sampled_from(["one", "two", None]), LABELS)
STEPS = st.one_of(
    st.tuples(st.just("pod"), KEYS, st.none()),
    PODS.map(lambda pod: ("pod", ObjectKey(pod.namespace, pod.name), pod)),
    st.tuples(st.just("selector"), KEYS, st.one_of(st.none(), SELECTORS)),
)


@given(st.lists(STEPS, max_size=40))
def test_counts_and_notified_watchers_are_those_of_a_plain_loop(
    steps: list[tuple[str, ObjectKey, Pod | PodSelector | None]],
) -> None:
    matcher = PodMatcher()
    pods: dict[ObjectKey, Pod] = {}
    selectors: dict[ObjectKey, PodSelector] = {}

    def matched(key: ObjectKey) -> dict[ObjectKey, Pod]:
        wanted = selectors[key]
        return {
            name: pod
            for name, pod in pods.items()
            if wanted.namespace in {None, pod.namespace}
            and set(wanted.labels) <= set(pod.labels)
            and not has_ended(pod)
        }

    for kind, key, given_ in steps:
        if isinstance(given_, PodSelector):
            assert matcher.set_selector(key, given_) == (selectors.get(key) != given_)
            selectors[key] = given_
        elif given_ is None and kind == "selector":
            matcher.remove_selector(key)
            selectors.pop(key, None)
        else:
            before = {one: matched(one) for one in selectors}
            old = pods.pop(key, None)
            if isinstance(given_, Pod):
                pods[key] = given_
            told = matcher.pod_changed(old, given_ if isinstance(given_, Pod) else None)
            changed = {one for one in selectors if _shown(matched(one)) != _shown(before[one])}
            assert changed <= told <= selectors.keys()
        for one in selectors:
            shown = matched(one)
            injected = sum(pod.injected for pod in shown.values())
            assert matcher.counts(one) == PodCounts(len(shown), injected)
            assert sorted(matcher.pods(one)) == sorted(shown)
            assert all(
                matcher.selects(one, pod) == (name in shown)
                for name, pod in pods.items()
                if not has_ended(pod)
            )


def _shown(pods: dict[ObjectKey, Pod]) -> dict[ObjectKey, bool]:
    return {name: pod.injected for name, pod in pods.items()}
