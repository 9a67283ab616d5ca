import json
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from autowasm.api.status import MissingPod, Module, Pods, Status
from autowasm.controller.pods import seen as seen_module
from autowasm.controller.pods.seen import NEVER, Seen, read
from autowasm.kube.pods import Pod
from tests.fakes.autowasms import digest, record

NOW = 1_800_000_000.0
A = digest("a")


def pod(name: str = "p", *, started: float = NOW - 100) -> Pod:
    uid = name.encode().ljust(16, b"\0")
    return Pod("team", name, uid, (), "10.0.0.1", "Running", int(started), True)


def document(up: float = 1_000.0, **ages: float) -> bytes:
    return json.dumps({"instance": "a", "up": up, "seen": {"10.0.0.1": ages}}).encode()


def learned(*documents: bytes, pods: Iterable[Pod] = (pod(),), complete: bool = True) -> Seen:
    seen = Seen()
    learn(seen, *documents, pods=pods, complete=complete)
    return seen


def learn(
    seen: Seen,
    *documents: bytes,
    now: float = NOW,
    pods: Iterable[Pod] = (),
    complete: bool = True,
) -> None:
    for _ in seen.learn(documents, now=now, complete=complete, pods_at=lambda _: pods):
        pass


def test_download_since_the_pod_started_counts() -> None:
    assert set(learned(document(ok=50)).fetched) == {pod().uid}
    assert not learned(document(ok=150)).fetched, "another Pod had the address then"


def test_last_answer_of_all_replicas_decides() -> None:
    seen = learned(document(ok=50), document(error=20, status=503))
    assert (set(seen.fetched), seen.refused) == (set(), {pod().uid: 503})
    seen = learned(document(ok=10), document(error=20, status=503))
    assert (set(seen.fetched), seen.refused) == ({pod().uid}, {})


def test_address_of_two_pods_or_of_none_proves_nothing() -> None:
    assert not learned(document(ok=5), pods=[pod("a"), pod("b")]).fetched
    seen = learned(document(ok=5), pods=[])
    assert seen.strangers
    assert not seen.fetched


def test_address_that_is_shown_late_is_given_its_download_then() -> None:
    for before in ([], [pod("a"), pod("b")], [pod(started=0)]):
        seen = learned(document(ok=50), pods=before)
        assert not seen.fetched
        list(seen.place([pod()], is_shared=lambda _: True))
        assert not seen.fetched, "two Pods have it still"
        list(seen.place([pod(started=NOW - 20)], is_shared=lambda _: False))
        assert not seen.fetched, "it asked before this Pod started"
        seen = learned(document(ok=50), pods=before)
        list(seen.place([pod()], is_shared=lambda _: False))
        assert set(seen.fetched) == {pod().uid}
        assert not seen.strangers


def test_address_of_a_pod_that_went_is_no_stranger_until_it_asks_again() -> None:
    seen = learned(document(ok=50))
    learn(seen, document(ok=61), now=NOW + 10)
    assert not seen.strangers
    assert set(seen.fetched) == {pod().uid}
    learn(seen, document(ok=10), now=NOW + 20)
    assert seen.strangers == {"10.0.0.1": NOW + 10}


def test_large_mesh_is_learned_in_steps_and_shows_at_once() -> None:
    addresses = {f"10.0.{n >> 8}.{n & 255}": {"ok": 5} for n in range(5_000)}
    pods = [
        Pod("team", at, at.encode().ljust(16, b"\0"), (), at, "Running", int(NOW) - 9, True)
        for at in addresses
    ]
    by_address = {one.ips: one for one in pods}
    told = json.dumps({"instance": "a", "up": 1, "seen": addresses}).encode()
    seen, steps = learned(document(error=20, status=503)), 0
    before = dict(seen.refused)
    for _ in seen.learn(
        [told], now=NOW, complete=True, pods_at=lambda address: [by_address[address]]
    ):
        steps += 1
        assert (seen.fetched, seen.refused) == ({}, before), "nothing by halves"
    assert steps >= 50
    assert len(seen.fetched) == 5_000
    assert not seen.refused


def test_numbers_that_no_replica_says_harm_nobody() -> None:
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
    seen = Seen()
    list(seen.believe(found, sha256, pods))
    return set(seen.fetched)


def test_status_of_a_leader_before_is_believed_where_it_tells_of_every_pod() -> None:
    a, b, c = (pod(name) for name in "abc")
    assert believed(status(2, "c"), a, b, c) == {a.uid, b.uid}
    assert believed(status(1, "c"), a, b, c) == set(), "not all that are missing are named"
    assert believed(status(2, "c"), a, b, c, sha256=digest("b")) == set()
    late = pod("late", started=NOW + 5)
    assert believed(status(2, "c"), a, late, c) == {a.uid}, "started after it was written"
    assert believed(status(2, "c"), a, b, pod("d"), c) == set(), "more than were counted"


_AGES = st.dictionaries(st.sampled_from(["ok", "error", "status"]), st.integers(0, 600), max_size=3)
_ANYTHING = st.recursive(
    st.none() | st.integers(-9, 9) | st.text('{},:"\\\\x', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('{},"x', max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    st.dictionaries(st.text('{},:"\\\\x1.', max_size=6), _AGES | _ANYTHING, max_size=12),
    st.integers(1, 40),
    st.booleans(),
)
def test_a_document_in_pieces_is_the_whole_document(
    addresses: dict[str, Any], size: int, spaced: bool
) -> None:
    separators = (", ", ": ") if spaced else (",", ":")
    told = json.dumps({"instance": "a", "up": 1, "seen": addresses}, separators=separators).encode()
    with patch.object(seen_module, "_PIECE", size):
        found, pieces = read(told)
        # What follows a piece that cannot be read on its own is read again with it: the last one counts.
        assert dict(pieces) == {
            at: ages for at, ages in addresses.items() if isinstance(ages, dict)
        }
    assert (found["instance"], found["up"]) == ("a", 1)


def test_a_large_document_is_decoded_in_pieces() -> None:
    addresses = {f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}": {"ok": 1.5} for n in range(50_000)}
    told = json.dumps({"instance": "a", "up": 1, "seen": addresses}, separators=(",", ":")).encode()
    decode, sizes = msgspec.json.decode, []

    def counted(data: bytes) -> Any:
        sizes.append(len(data))
        return decode(data)

    with patch.object(msgspec.json, "decode", counted):
        assert dict(read(told)[1]) == addresses
    assert max(sizes) < 20_000
    assert sum(sizes) < 1.1 * len(told)
