"""For any evidence: each Pod is counted once, and none counts as fetched, or as never asked, without proof."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from autowasm.controller.pods.loadreport import (
    LoadEvidence,
    MissingReason,
    load_report,
    why_missing,
)
from autowasm.controller.pods.podmatching import Pod
from tests.fakes.generators import finished

NOW = 10_000.0
TIMES = st.integers(0, int(NOW))


@dataclass(frozen=True)
class Case:
    pods: list[Pod]
    known: LoadEvidence


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pods = [
        Pod(
            "team",
            f"p{number}",
            str(number).encode().ljust(16, b"\0"),
            (),
            f"10.0.0.{number}",
            "Running",
            draw(TIMES),
            draw(st.booleans()),
            draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 15)))
    ]
    uids = [pod.uid for pod in pods]
    subset = st.sets(st.sampled_from(uids)) if uids else st.just(set())
    shared = draw(subset)
    known = LoadEvidence(
        fetched=draw(subset),
        refused=dict.fromkeys(draw(subset), 503),
        is_shared=lambda pod: pod.uid in shared,
        watched_since=draw(st.one_of(st.just(float("inf")), st.floats(0, NOW))),
        strangers=draw(st.one_of(st.just(0.0), st.floats(0, NOW))),
        known=draw(st.one_of(st.just(NOW), st.floats(0, NOW))),
        published=float(draw(TIMES)),
        first=float(draw(TIMES)),
    )
    return Case(pods, known)


@given(cases())
def test_every_pod_is_counted_once_and_only_with_proof(case: Case) -> None:
    found = finished(
        load_report(case.pods, case.known, generation=1, now=NOW, grace=60.0, names=10)
    )
    proved = {pod.uid for pod in case.pods if pod.injected and pod.uid in case.known.fetched}
    assert found.pods.fetched == len(proved)
    assert sum(found.states.values()) == found.pods.matched == len(case.pods)
    assert len(found.pods.missing) == min(10, len(case.pods) - len(proved))
    assert (found.loaded.status == "True") == (0 < len(case.pods) == len(proved))
    for pod in case.pods:
        why = why_missing(pod, case.known, now=NOW, grace=60.0)
        assert (why is None) == (pod.uid in proved)
        if why is MissingReason.NEVER_ASKED:
            assert case.known.watched_since <= max(pod.started, case.known.first)
            assert case.known.strangers < pod.started
            assert not case.known.is_shared(pod)
            assert case.known.known - max(pod.started, case.known.published) >= 60.0


@given(cases())
def test_order_of_pods_changes_nothing(case: Case) -> None:
    arguments = {"generation": 1, "now": NOW, "grace": 60.0, "names": 10}
    one = finished(load_report(case.pods, case.known, **arguments))  # type: ignore[arg-type]
    other = finished(load_report(case.pods[::-1], case.known, **arguments))  # type: ignore[arg-type]
    assert other == one
