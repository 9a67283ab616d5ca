import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from autowasm.api.status import MissingPod, Module, Pods, Status
from autowasm.controller.pods.loadreport import NEVER, DownloadEvidence
from autowasm.controller.pods.podmatching import Pod
from tests.fakes.autowasms import digest, record

NOW = 1_800_000_000.0
A = digest("a")


def pod(name: str = "p", *, started: float = NOW - 100) -> Pod:
    uid = name.encode().ljust(16, b"\0")
    return Pod("team", name, uid, (), "10.0.0.1", "Running", int(started), True)


def document(up: float = 1_000.0, **ages: float) -> bytes:
    return json.dumps({"instance": "a", "up": up, "seen": {"10.0.0.1": ages}}).encode()


def learned(
    *documents: bytes, pods: Iterable[Pod] = (pod(),), complete: bool = True
) -> DownloadEvidence:
    known = DownloadEvidence()
    learn(known, *documents, pods=pods, complete=complete)
    return known


def learn(
    known: DownloadEvidence,
    *documents: bytes,
    now: float = NOW,
    pods: Iterable[Pod] = (),
    complete: bool = True,
) -> None:
    for _ in known.learn(documents, now=now, complete=complete, pods_at=lambda _: pods):
        pass


def test_download_since_the_pod_started_counts() -> None:
    assert set(learned(document(ok=50)).fetched) == {pod().uid}
    assert not learned(document(ok=150)).fetched, "another Pod had the address then"


def test_last_answer_of_all_replicas_decides() -> None:
    known = learned(document(ok=50), document(error=20, status=503))
    assert (set(known.fetched), known.refused) == (set(), {pod().uid: 503})
    known = learned(document(ok=10), document(error=20, status=503))
    assert (set(known.fetched), known.refused) == ({pod().uid}, {})


def test_address_of_two_pods_or_of_none_proves_nothing() -> None:
    assert not learned(document(ok=5), pods=[pod("a"), pod("b")]).fetched
    known = learned(document(ok=5), pods=[])
    assert known.strangers
    assert not known.fetched


def test_address_that_is_shown_late_is_given_its_download_then() -> None:
    for before in ([], [pod("a"), pod("b")], [pod(started=0)]):
        known = learned(document(ok=50), pods=before)
        assert not known.fetched
        list(known.place([pod()], is_shared=lambda _: True))
        assert not known.fetched, "two Pods have it still"
        list(known.place([pod(started=NOW - 20)], is_shared=lambda _: False))
        assert not known.fetched, "it asked before this Pod started"
        known = learned(document(ok=50), pods=before)
        list(known.place([pod()], is_shared=lambda _: False))
        assert set(known.fetched) == {pod().uid}
        assert not known.strangers


def test_address_of_a_deleted_pod_is_no_stranger_until_its_next_request() -> None:
    known = learned(document(ok=50))
    learn(known, document(ok=61), now=NOW + 10)
    assert not known.strangers
    assert set(known.fetched) == {pod().uid}
    learn(known, document(ok=10), now=NOW + 20)
    assert known.strangers == {"10.0.0.1": NOW + 10}


def test_large_mesh_is_learned_in_steps_and_shows_at_once() -> None:
    addresses = {f"10.0.{n >> 8}.{n & 255}": {"ok": 5} for n in range(5_000)}
    pods = [
        Pod("team", at, at.encode().ljust(16, b"\0"), (), at, "Running", int(NOW) - 9, True)
        for at in addresses
    ]
    by_address = {one.ips: one for one in pods}
    log_of = json.dumps({"instance": "a", "up": 1, "seen": addresses}).encode()
    known, steps = learned(document(error=20, status=503)), 0
    before = dict(known.refused)
    for _ in known.learn(
        [log_of], now=NOW, complete=True, pods_at=lambda address: [by_address[address]]
    ):
        steps += 1
        assert (known.fetched, known.refused) == ({}, before), "nothing by halves"
    assert steps >= 50
    assert len(known.fetched) == 5_000
    assert not known.refused


def test_invalid_numbers_from_a_replica_are_harmless() -> None:
    for number in ("Infinity", "NaN", "1" + "0" * 400, "-1", '"x"'):
        ages = f'{{"ok": {number}, "error": {number}, "status": {number}}}'
        text = f'{{"instance": "a", "up": {number}, "seen": {{"10.0.0.1": {ages}}}}}'
        assert learned(text.encode()).watched_since == NOW


def test_watched_since_the_youngest_replica_started_if_all_answered() -> None:
    assert learned(document(up=1_000), document(up=10)).watched_since == NOW - 10
    assert learned(document(up=1_000), complete=False).watched_since == NEVER
    assert learned(b"no json").watched_since == NOW


def status(
    fetched: int, *missing: str, matched: int = 3, time: str = "2027-01-15T08:00:00Z"
) -> Status:
    named = tuple(MissingPod("team", name, "NeverAsked") for name in missing)
    return Status(
        module=Module.of(record(sha256=A), "2027-01-15T00:00:00Z"),
        pods=Pods(matched=matched, injected=matched, fetched=fetched, missing=named, time=time),
    )


def believed(found: Status, *pods: Pod, sha256: str = A) -> set[bytes]:
    known = DownloadEvidence()
    list(known.believe(found, sha256, pods))
    return set(known.fetched)


def test_status_of_the_previous_leader_counts_if_it_covers_every_pod() -> None:
    a, b, c = (pod(name) for name in "abc")
    assert believed(status(2, "c"), a, b, c) == {a.uid, b.uid}
    assert believed(status(1, "c"), a, b, c) == set(), "not all that are missing are named"
    assert believed(status(2, "c"), a, b, c, sha256=digest("b")) == set()
    late = pod("late", started=NOW + 5)
    assert believed(status(2, "c"), a, late, c) == {a.uid}, "started after it was written"
    assert believed(status(2, "c"), a, b, pod("d"), c) == set(), "more than were counted"


def test_nothing_is_known_before_replicas_are_asked() -> None:
    known = DownloadEvidence()
    assert (known.fetched, known.refused, known.strangers) == ({}, {}, {})
    assert (known.watched_since, known.queried, known.learned, known.is_behind) == (
        NEVER,
        False,
        0,
        False,
    )


def test_a_new_answer_resets_all_earlier_uncertainty() -> None:
    known = learned(document(ok=5), pods=[], complete=False)
    assert (known.learned, known.queried, known.watched_since) == (NOW, True, NEVER)
    assert known.strangers == {"10.0.0.1": NOW - 5}
    known.is_behind = True
    learn(known, document(up=30), now=NOW + 7)
    assert (known.learned, known.queried, known.is_behind) == (NOW + 7, True, False)
    assert known.watched_since == NOW + 7 - 30
    assert known.strangers == {}, "its entry ran out"


def log_of(**ages: float | str) -> bytes:
    return json.dumps({"instance": "a", "up": 1, "seen": {"10.0.0.1": ages}}).encode()


@pytest.mark.parametrize(
    ("ages", "fetched", "refused"),
    [
        ({}, None, None),
        ({"ok": 100}, NOW - 100, None),
        ({"ok": 101}, None, None),
        ({"error": 100, "status": 403}, None, 403),
        ({"error": 101, "status": 403}, None, None),
        ({"ok": 7, "error": 7, "status": 403}, NOW - 7, None),
        ({"ok": 7, "error": 6, "status": 403}, None, 403),
        ({"ok": 120, "error": 7, "status": 403}, None, 403),
        ({"ok": 7, "error": 120, "status": 403}, NOW - 7, None),
        ({"error": 7}, None, 0),
        ({"error": 7, "status": "x"}, None, 0),
    ],
)
def test_last_answer_to_an_address_since_its_pod_started_counts(
    ages: dict[str, float | str], fetched: float | None, refused: int | None
) -> None:
    known = learned(log_of(**ages))
    uid = pod().uid
    assert known.fetched == ({} if fetched is None else {uid: fetched})
    assert known.refused == ({} if refused is None else {uid: refused})
    assert known.strangers == {}


def test_address_without_requests_counts_for_no_pod() -> None:
    known = learned(log_of(), pods=[pod(started=1)])
    assert (known.fetched, known.refused) == ({}, {})


@pytest.mark.parametrize(
    ("first", "second", "fetched", "refused"),
    [
        ({"ok": 50}, {"ok": 20}, NOW - 20, None),
        ({"ok": 20}, {"ok": 50}, NOW - 20, None),
        ({"ok": 20}, {}, NOW - 20, None),
        ({"error": 9, "status": 403}, {"error": 4, "status": 503}, None, 503),
        ({"error": 4, "status": 403}, {"error": 9, "status": 503}, None, 403),
        ({"error": 4, "status": 403}, {"error": 4, "status": 503}, None, 403),
        ({"error": 4, "status": 403}, {"ok": 9}, None, 403),
        ({"error": 4, "status": 403}, {}, None, 403),
    ],
)
def test_of_two_replicas_the_later_answer_counts(
    first: dict[str, float], second: dict[str, float], fetched: float | None, refused: int | None
) -> None:
    known = learned(log_of(**first), log_of(**second))
    assert known.fetched == ({} if fetched is None else {pod().uid: fetched})
    assert known.refused == ({} if refused is None else {pod().uid: refused})


def test_an_error_revokes_a_download_and_only_current_errors_are_kept() -> None:
    known = learned(document(ok=50))
    assert known.fetched == {pod().uid: NOW - 50}
    learn(known, log_of(error=3, status=503), now=NOW + 10, pods=[pod()])
    assert (known.fetched, known.refused) == ({}, {pod().uid: 503})
    learn(known, document(), now=NOW + 20, pods=[pod()])
    assert (known.fetched, known.refused) == ({}, {})
    learn(known, document(ok=1), now=NOW + 30, pods=[pod()])
    learn(known, document(), now=NOW + 40, pods=[pod()])
    assert known.fetched == {pod().uid: NOW + 29}, "a download stays known"


@pytest.mark.parametrize("later", [4.0, 5.0])
def test_an_answer_about_the_same_request_makes_no_stranger(later: float) -> None:
    known = learned(document(ok=50))
    for step in (1, 2):  # a request that was assigned once stays assigned
        learn(known, document(ok=50 - later + step), now=NOW + step)
        assert known.strangers == {}
    learn(known, document(ok=50 - 5.5 + 3), now=NOW + 3)
    assert known.strangers == {"10.0.0.1": NOW - 50 + 5.5}


def test_an_address_of_two_pods_is_no_stranger() -> None:
    known = learned(document(ok=5), pods=[pod("a"), pod("b")])
    assert known.strangers == {}
    list(known.place([pod("b")], is_shared=lambda _: False))
    assert known.fetched == {pod("b").uid: NOW - 5}


def test_an_unknown_address_with_errors_only_is_a_stranger() -> None:
    assert learned(log_of(error=9, status=503), pods=[]).strangers == {"10.0.0.1": NOW - 9}
    assert learned(log_of(error=9, ok=30), pods=[]).strangers == {"10.0.0.1": NOW - 9}


def test_a_pod_that_is_shown_late_is_given_the_error_of_its_address() -> None:
    known = learned(log_of(error=9, status=503), pods=[])
    known.fetched[pod().uid] = 0.0
    list(known.place([pod()], is_shared=lambda _: False))
    assert (known.fetched, known.refused, known.strangers) == ({}, {pod().uid: 503}, {})


def test_late_assignment_of_a_download_is_final() -> None:
    known = learned(document(ok=50), pods=[])
    list(known.place([pod()], is_shared=lambda _: False))
    known.fetched.clear()
    list(known.place([pod()], is_shared=lambda _: False))
    assert known.fetched == {}, "a download is given once"
    learn(known, document(ok=60), now=NOW + 10)
    assert known.strangers == {}, "its Pod went"


def test_a_pod_with_several_addresses_is_found_by_each() -> None:
    known = learned(document(ok=50), pods=[])
    dual = msgspec.structs.replace(pod(), ips="fd00::1,10.0.0.1")
    list(known.place([dual], is_shared=lambda _: False))
    assert known.fetched == {dual.uid: NOW - 50}


def test_download_is_kept_until_the_start_time_of_its_pod_is_known() -> None:
    known = learned(document(ok=50), pods=[])
    list(known.place([pod(started=0)], is_shared=lambda _: False))
    assert known.fetched == {}
    list(known.place([pod()], is_shared=lambda _: False))
    assert known.fetched == {pod().uid: NOW - 50}


def steps(iterator: Iterator[None]) -> int:
    return sum(1 for _ in iterator)


def many(count: int) -> list[Pod]:
    return [
        Pod("team", f"{n}", n.to_bytes(16, "big"), (), f"10.0.{n >> 8}.{n & 255}", "", 1, True)
        for n in range(count)
    ]


@pytest.mark.parametrize(("count", "expected"), [(1, 2), (200, 2), (201, 4), (401, 6)])
def test_addresses_are_learned_two_hundred_in_a_step(count: int, expected: int) -> None:
    addresses = {one.ips: {"ok": 5} for one in many(count)}
    document = json.dumps({"instance": "a", "up": 1, "seen": addresses}).encode()
    known = DownloadEvidence()
    learning = known.learn([document], now=NOW, complete=True, pods_at=lambda _: [])
    assert steps(learning) == expected, "one pass over the document, one over the addresses"
    assert len(known.strangers) == count


@pytest.mark.parametrize(("count", "expected"), [(199, 0), (200, 1), (399, 1), (400, 2)])
def test_pods_are_placed_and_believed_two_hundred_in_a_step(count: int, expected: int) -> None:
    log_of = {"10.0.0.1": {"ok": 5}, "192.0.2.1": {"ok": 5}}  # the second one is of no Pod
    known = learned(json.dumps({"up": 1, "seen": log_of}).encode(), pods=[])
    assert steps(known.place(many(count), is_shared=lambda _: False)) == expected
    assert list(known.strangers) == ["192.0.2.1"]
    believing = DownloadEvidence().believe(status(count, matched=count), A, many(count))
    assert steps(believing) == expected


def test_no_pod_is_looked_at_when_there_is_nothing_to_place() -> None:
    looked_up: list[Pod] = []

    def pods() -> Iterator[Pod]:
        for one in [pod("a"), pod("b"), pod("c")]:
            looked_up.append(one)
            yield one

    known = learned(document(ok=50), pods=[])
    list(known.place(pods(), is_shared=lambda _: False))
    assert [one.name for one in looked_up] == ["a", "b"], "the rest need not be looked at"


def without(found: Status, **changes: Any) -> Status:
    return msgspec.structs.replace(found, **changes)


def test_an_incomplete_or_contradictory_status_is_ignored() -> None:
    a, b, c = (pod(name) for name in "abc")
    whole = status(2, "c")
    assert believed(whole, a, b, c) == {a.uid, b.uid}
    assert isinstance(whole.pods, Pods)
    assert believed(without(whole, module=UNSET), a, b, c) == set()
    assert believed(without(whole, pods=UNSET), a, b, c) == set()
    no_count = msgspec.structs.replace(whole.pods, fetched=UNSET, missing=())
    assert believed(without(whole, pods=no_count), a, b, c) == set()
    assert believed(status(2, "c", time="yesterday"), a, b, c) == set()
    assert believed(status(2, "c", matched=4), a, b, c) == set()
    assert believed(status(2, "c", matched=2), a, b, c) == set()


def test_fewer_pods_than_were_counted_are_believed() -> None:
    a, b = pod("a"), pod("b")
    assert believed(status(3, matched=3), a, b) == {a.uid, b.uid}
    assert believed(status(2, matched=2), a, b) == {a.uid, b.uid}
    assert believed(status(1, matched=1), a, b) == set()


def test_only_injected_pods_that_had_started_when_the_status_was_written_are_believed() -> None:
    written = int(NOW)
    pods = [
        pod("before", started=written - 1),
        pod("then", started=written),
        pod("unstarted", started=0),
        pod("early", started=1),
        msgspec.structs.replace(pod("bare"), injected=False),
    ]
    assert believed(status(5, matched=5), *pods) == {pods[0].uid, pods[3].uid}


def test_a_missing_pod_is_known_by_its_namespace_too() -> None:
    elsewhere = msgspec.structs.replace(pod("c"), namespace="other")
    assert believed(status(2, "c"), elsewhere, pod("c")) == {elsewhere.uid}


def test_seen_download_takes_precedence_over_the_status() -> None:
    a, b = pod("a"), pod("b")
    known = learned(document(ok=50), pods=[a])
    list(known.believe(status(2, matched=2), A, [a, b]))
    assert known.fetched == {a.uid: NOW - 50, b.uid: 0.0}


def test_status_with_an_invalid_time_proves_nothing() -> None:
    previous = Status(
        module=Module(source="", sha256=A, size=1, abi="", fetched_at=""),
        pods=Pods(matched=1, injected=1, fetched=1, time="yesterday"),
    )
    known = DownloadEvidence()
    for _ in known.believe(previous, A, [pod()]):
        pass
    assert not known.fetched


def test_many_pods_are_believed_in_steps() -> None:
    pods = [pod(f"p{number}") for number in range(5000)]
    time = datetime.fromtimestamp(NOW, UTC).isoformat()
    previous = Status(
        module=Module(source="", sha256=A, size=1, abi="", fetched_at=""),
        pods=Pods(matched=5000, injected=5000, fetched=5000, time=time),
    )
    known = DownloadEvidence()
    assert sum(1 for _ in known.believe(previous, A, pods)) > 1
    assert len(known.fetched) == 5000
