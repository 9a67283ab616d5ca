import json

from autowasm.digest import Sha256Hex
from autowasm.limits import SightingLimits
from autowasm.server.sightings import AllReplicas, Sightings

A, B, C = (Sha256Hex(letter * 64) for letter in "abc")


def sightings(**limits: int) -> Sightings:
    return Sightings(SightingLimits(**limits), instance="one")


def seen(found: Sightings, sha256: Sha256Hex) -> dict[str, dict[str, float]]:
    document = json.loads(found.document(sha256))
    assert document["instance"] == "one"
    assert document["up"] >= 0
    result: dict[str, dict[str, float]] = document["seen"]
    return result


def test_last_download_and_last_error_of_an_address_are_kept() -> None:
    found = sightings()
    found.failed(A, "10.0.0.1", 503, known=True)
    found.served(A, "::ffff:10.0.0.1")
    found.served(A, "10.0.0.2")
    assert set(seen(found, A)) == {"10.0.0.1", "10.0.0.2"}
    assert set(seen(found, A)["10.0.0.1"]) == {"ok", "error", "status"}
    assert set(seen(found, A)["10.0.0.2"]) == {"ok"}
    assert seen(found, B) == {}


def test_errors_for_a_digest_count_on_when_it_becomes_known() -> None:
    found = sightings()
    found.failed(A, "10.0.0.1", 404, known=False)
    found.served(A, "10.0.0.2")
    assert set(seen(found, A)) == {"10.0.0.1", "10.0.0.2"}
    assert json.loads(found.summary())["errors"] == 1


def test_invented_digests_push_out_none_that_is_published() -> None:
    found = sightings(digests=2)
    found.served(A, "10.0.0.1")
    for number in range(10):
        found.failed(Sha256Hex(f"{number:064x}"), "10.0.0.9", 404, known=False)
    assert seen(found, A)
    assert len([n for n in range(10) if seen(found, Sha256Hex(f"{n:064x}"))]) == 2


def test_longest_unseen_addresses_and_digests_go_first() -> None:
    found = sightings(digests=2, addresses=2)
    for sha256 in (A, B, C):
        found.served(sha256, "10.0.0.1")
    assert (bool(seen(found, A)), bool(seen(found, B)), bool(seen(found, C))) == (False, True, True)
    for number in range(3):
        found.served(B, f"10.0.1.{number}")
    found.served(B, None)
    assert set(seen(found, B)) == {"10.0.1.1", "10.0.1.2"}


async def test_our_own_documents_come_with_those_of_the_others() -> None:
    class Others:
        async def ask(self, path: str) -> list[bytes]:
            return [path.encode()]

        def known(self) -> tuple[str, ...]:
            return ("http://other",)

    found = sightings()
    assert (await AllReplicas(found, Others()).ask(f"/seen/{A}"))[1] == f"/seen/{A}".encode()
    assert AllReplicas(found, Others()).count() == 2
    assert len(await AllReplicas(found, None).ask("/seen")) == 1
    assert AllReplicas(found, None).count() == 1
