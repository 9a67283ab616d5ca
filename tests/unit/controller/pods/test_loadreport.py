from dataclasses import replace

import msgspec
import pytest

from autowasm.controller.pods.loadreport import (
    STEP,
    LoadEvidence,
    LoadReport,
    MissingReason,
    load_report,
    why_missing,
)
from autowasm.controller.pods.podmatching import Pod
from tests.fakes.generators import finished

NOW, GRACE = 10_000.0, 60.0


def pod(name: str = "p", *, started: int = 5_000, injected: bool = True, ready: bool = True) -> Pod:
    uid = name.encode().ljust(16, b"\0")
    return Pod("team", name, uid, (), "10.0.0.1", "Running", started, injected, ready)


def evidence(
    *fetched: str,
    refused: dict[str, int] | None = None,
    shared: bool = False,
    watched_since: float = 0.0,
    strangers: float = 0.0,
    known: float = NOW,
    published: float = 6_000.0,
    first: float = 6_000.0,
) -> LoadEvidence:
    return LoadEvidence(
        fetched={name.encode().ljust(16, b"\0") for name in fetched},
        refused={pod(name).uid: status for name, status in (refused or {}).items()},
        is_shared=lambda _: shared,
        watched_since=watched_since,
        strangers=strangers,
        known=known,
        published=published,
        first=first,
    )


def report_of(pods: list[Pod], known: LoadEvidence, *, names: int = 10) -> LoadReport:
    return finished(load_report(pods, known, generation=3, now=NOW, grace=GRACE, names=names))


def test_all_sidecars_that_fetched_make_it_true() -> None:
    found = report_of([pod("a"), pod("b")], evidence("a", "b"))
    assert (found.pods.matched, found.pods.injected, found.pods.fetched) == (2, 2, 2)
    assert (found.loaded.type, found.loaded.status, found.loaded.reason) == (
        "Loaded",
        "True",
        "Fetched",
    )
    assert found.loaded.message == "2 of 2 sidecars fetched the module"
    assert found.loaded.observed_generation == 3


@pytest.mark.parametrize(
    ("one", "known", "why", "status"),
    [
        (pod("a", injected=False), evidence(), MissingReason.NOT_INJECTED, "False"),
        (pod("a"), evidence(refused={"a": 503}), MissingReason.REFUSED, "False"),
        (pod("a"), evidence(), MissingReason.NEVER_ASKED, "False"),
        (pod("a", ready=False), evidence(), MissingReason.NOT_READY, "Unknown"),
        (pod("a", started=0), evidence(), MissingReason.NOT_READY, "Unknown"),
        (pod("a"), evidence(published=NOW - 5), MissingReason.WAITING, "Unknown"),
        (pod("a", started=int(NOW) - 5), evidence(), MissingReason.WAITING, "Unknown"),
        (pod("a"), evidence(known=6_050.0), MissingReason.WAITING, "Unknown"),
        (pod("a"), evidence(known=6_060.0), MissingReason.NEVER_ASKED, "False"),
        (pod("a"), evidence(shared=True), MissingReason.SHARED_ADDRESS, "Unknown"),
        (pod("a"), evidence(strangers=6_500.0), MissingReason.UNATTRIBUTED, "Unknown"),
        (pod("a"), evidence(strangers=4_000.0), MissingReason.NEVER_ASKED, "False"),
        (pod("a"), evidence(watched_since=7_000.0), MissingReason.NOT_KNOWN, "Unknown"),
        (pod("a"), evidence(watched_since=float("inf")), MissingReason.NOT_KNOWN, "Unknown"),
    ],
)
def test_pod_without_the_module_is_named_with_its_reason(
    one: Pod, known: LoadEvidence, why: MissingReason, status: str
) -> None:
    found = report_of([one, pod("b")], replace(known, fetched={pod("b").uid}))
    assert [(each.name, each.reason) for each in found.pods.missing] == [("a", why.value)]
    assert (found.loaded.status, found.loaded.reason) == (status, why.value)
    assert "team/a" in found.loaded.message
    assert found.states == {why.value: 1, "Fetched": 1}


def test_silence_counts_where_all_replicas_watched_since_the_module_is_known() -> None:
    assert report_of([pod("a")], evidence(watched_since=5_500.0)).loaded.reason == "NeverAsked"


def test_selector_without_pods_is_reported() -> None:
    found = report_of([], evidence())
    assert (found.loaded.status, found.loaded.reason) == ("Unknown", "NoPods")
    assert found.loaded.message == "the selector matches no Pod"


def test_only_the_first_are_named_worst_first() -> None:
    pods = [pod(f"p{number:02}") for number in range(40)]
    known = evidence(*(one.name for one in pods[:20]), refused={"p39": 503})
    found = report_of(pods, known)
    assert len(found.pods.missing) == 10
    assert [one.name for one in found.pods.missing[:2]] == ["p39", "p20"]
    assert found.pods.missing[0].message == "requested it and got status 503"
    assert found.loaded.reason == "Refused"
    assert found.loaded.message.startswith("20 of 40 sidecars fetched the module; 20 of 40 Pods")
    assert found.loaded.message.endswith("and 17 more")


def test_reasons_are_those_that_the_reference_of_the_status_lists() -> None:
    """They are in statuses and metric labels, so in users' alerts and scripts."""
    assert [why.value for why in MissingReason] == [
        "Refused",
        "NeverAsked",
        "NotInjected",
        "NotReady",
        "Waiting",
        "SharedAddress",
        "Unattributed",
        "NotKnown",
    ]


@pytest.mark.parametrize(
    ("one", "known", "why"),
    [
        # Watched since the second in which the Pod could have sent its first request: counted.
        (pod(started=5_000), evidence(watched_since=6_000.0), MissingReason.NEVER_ASKED),
        (pod(started=5_000), evidence(watched_since=6_001.0), MissingReason.NOT_KNOWN),
        (pod(started=7_000), evidence(watched_since=7_000.0), MissingReason.NEVER_ASKED),
        (pod(started=7_000), evidence(watched_since=7_001.0), MissingReason.NOT_KNOWN),
        # A request of an unknown address in the second in which the Pod started may be of this Pod.
        (pod(started=5_000), evidence(strangers=5_000.0), MissingReason.UNATTRIBUTED),
        (pod(started=5_000), evidence(strangers=4_999.0), MissingReason.NEVER_ASKED),
        (pod(started=9_940), evidence(), MissingReason.NEVER_ASKED),
        (pod(started=9_941), evidence(), MissingReason.WAITING),
        (pod(started=5_000), evidence(published=9_940.0), MissingReason.NEVER_ASKED),
        (pod(started=5_000), evidence(published=9_941.0), MissingReason.WAITING),
        # Facts of the Pod itself come first.
        (pod(injected=False), evidence("p"), MissingReason.NOT_INJECTED),
        (pod(ready=False), evidence("p", refused={"p": 503}), None),
        (pod(), evidence(refused={"p": 503}, shared=True), MissingReason.REFUSED),
        (pod(started=0), evidence(shared=True), MissingReason.SHARED_ADDRESS),
        (pod(ready=False), evidence(published=9_999.0), MissingReason.WAITING),
        (pod(ready=False), evidence(watched_since=9_999.0), MissingReason.NOT_KNOWN),
        (pod(ready=False), evidence(strangers=9_999.0), MissingReason.UNATTRIBUTED),
        (pod(), evidence(watched_since=9_999.0, strangers=9_999.0), MissingReason.NOT_KNOWN),
    ],
)
def test_the_first_reason_that_fits_to_the_second_is_given(
    one: Pod, known: LoadEvidence, why: MissingReason | None
) -> None:
    assert why_missing(one, known, now=NOW, grace=GRACE) is why


@pytest.mark.parametrize(
    ("pods", "steps"), [(0, 0), (STEP - 1, 0), (STEP, 1), (2 * STEP - 1, 1), (2 * STEP, 2)]
)
def test_the_loop_gets_a_turn_after_every_step(pods: int, steps: int) -> None:
    assert STEP == 500
    running = load_report(
        [pod(f"p{number:04}") for number in range(pods)],
        evidence(),
        generation=1,
        now=NOW,
        grace=GRACE,
        names=3,
    )
    assert sum(1 for _ in running) == steps


@pytest.mark.parametrize(
    ("missing", "listed", "more"),
    [
        (1, ["p0"], ""),
        (3, ["p0", "p1", "p2"], ""),
        (4, ["p0", "p1", "p2"], "; and 1 more"),
        (5, ["p0", "p1", "p2"], "; and 2 more"),
    ],
)
def test_three_are_named_in_the_sentence_and_the_others_counted(
    missing: int, listed: list[str], more: str
) -> None:
    found = report_of([pod(f"p{number}") for number in range(missing)] + [pod("q")], evidence("q"))
    names = "; ".join(f"team/{name} has never requested it" for name in listed)
    assert found.loaded.message == (
        f"1 of {missing + 1} sidecars fetched the module; {missing} of {missing + 1} Pods "
        f"not known to have it: {names}{more}"
    )


def test_the_worst_are_named_although_they_come_after_a_step() -> None:
    pods = [pod(f"p{number:04}", started=0) for number in range(STEP + 10)]
    last = pods[-1]
    found = report_of(pods, evidence(refused={last.name: 404}), names=2)
    assert [(one.name, one.reason) for one in found.pods.missing] == [
        (last.name, "Refused"),
        ("p0000", "NotReady"),
    ]
    assert found.states == {"NotReady": STEP + 9, "Refused": 1}


def test_pods_of_one_name_in_two_namespaces_are_named_by_namespace() -> None:
    other = Pod("other", "p", b"o" * 16, (), "10.0.0.2", "Running", 5_000, True)
    found = report_of([pod("p"), pod("a"), other], evidence())
    assert [(one.namespace, one.name) for one in found.pods.missing] == [
        ("other", "p"),
        ("team", "a"),
        ("team", "p"),
    ]


def test_a_pod_and_its_successor_of_the_same_name_are_both_named() -> None:
    old, new = pod("a"), replace_uid(pod("a"), b"another")
    found = report_of([old, new], evidence(refused={"a": 503}))
    assert [one.message for one in found.pods.missing] == [
        "requested it and got status 503",
        "has never requested it",
    ]
    assert len(report_of([old, new], evidence()).pods.missing) == 2


def replace_uid(found: Pod, uid: bytes) -> Pod:
    return msgspec.structs.replace(found, uid=uid.ljust(16, b"\0"))
