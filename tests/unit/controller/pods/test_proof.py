from dataclasses import replace

import pytest

from autowasm.controller.pods.proof import Evidence, Report, Why, report
from autowasm.kube.pods import Pod
from tests.fakes.steps import finished

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
) -> Evidence:
    return Evidence(
        fetched={name.encode().ljust(16, b"\0") for name in fetched},
        refused={pod(name).uid: status for name, status in (refused or {}).items()},
        is_shared=lambda _: shared,
        watched_since=watched_since,
        strangers=strangers,
        known=known,
        published=published,
        first=first,
    )


def said(pods: list[Pod], known: Evidence, *, names: int = 10) -> Report:
    return finished(report(pods, known, generation=3, now=NOW, grace=GRACE, names=names))


def test_all_sidecars_that_fetched_make_it_true() -> None:
    found = said([pod("a"), pod("b")], evidence("a", "b"))
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
        (pod("a", injected=False), evidence(), Why.NOT_INJECTED, "False"),
        (pod("a"), evidence(refused={"a": 503}), Why.REFUSED, "False"),
        (pod("a"), evidence(), Why.NEVER_ASKED, "False"),
        (pod("a", ready=False), evidence(), Why.NOT_READY, "Unknown"),
        (pod("a", started=0), evidence(), Why.NOT_READY, "Unknown"),
        (pod("a"), evidence(published=NOW - 5), Why.WAITING, "Unknown"),
        (pod("a", started=int(NOW) - 5), evidence(), Why.WAITING, "Unknown"),
        (pod("a"), evidence(known=6_050.0), Why.WAITING, "Unknown"),
        (pod("a"), evidence(known=6_060.0), Why.NEVER_ASKED, "False"),
        (pod("a"), evidence(shared=True), Why.SHARED_ADDRESS, "Unknown"),
        (pod("a"), evidence(strangers=6_500.0), Why.UNATTRIBUTED, "Unknown"),
        (pod("a"), evidence(strangers=4_000.0), Why.NEVER_ASKED, "False"),
        (pod("a"), evidence(watched_since=7_000.0), Why.NOT_KNOWN, "Unknown"),
        (pod("a"), evidence(watched_since=float("inf")), Why.NOT_KNOWN, "Unknown"),
    ],
)
def test_who_did_not_is_named_with_what_can_be_known(
    one: Pod, known: Evidence, why: Why, status: str
) -> None:
    found = said([one, pod("b")], replace(known, fetched={pod("b").uid}))
    assert [(each.name, each.reason) for each in found.pods.missing] == [("a", why.value)]
    assert (found.loaded.status, found.loaded.reason) == (status, why.value)
    assert "team/a" in found.loaded.message
    assert found.states == {why.value: 1, "Fetched": 1}


def test_silence_counts_where_all_replicas_watched_since_the_module_is_known() -> None:
    assert said([pod("a")], evidence(watched_since=5_500.0)).loaded.reason == "NeverAsked"


def test_selector_without_pods_is_said_so() -> None:
    found = said([], evidence())
    assert (found.loaded.status, found.loaded.reason) == ("Unknown", "NoPods")
    assert found.loaded.message == "the selector matches no Pod"


def test_only_the_first_are_named_worst_first() -> None:
    pods = [pod(f"p{number:02}") for number in range(40)]
    known = evidence(*(one.name for one in pods[:20]), refused={"p39": 503})
    found = said(pods, known)
    assert len(found.pods.missing) == 10
    assert [one.name for one in found.pods.missing[:2]] == ["p39", "p20"]
    assert found.pods.missing[0].message == "asked and got 503"
    assert found.loaded.reason == "Refused"
    assert found.loaded.message.startswith("20 of 40 sidecars fetched the module; 20 of 40 Pods")
    assert found.loaded.message.endswith("and 17 more")
