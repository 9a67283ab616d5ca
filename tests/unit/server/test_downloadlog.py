import asyncio
import json
import time

import pytest

from autowasm.digest import Sha256Hex
from autowasm.limits import DownloadLogLimits
from autowasm.server.downloadlog import AllReplicas, DownloadLog

A, B, C = (Sha256Hex(letter * 64) for letter in "abc")


def download_log(**limits: int) -> DownloadLog:
    return DownloadLog(DownloadLogLimits(**limits), instance="one")


async def seen(found: DownloadLog, sha256: Sha256Hex) -> dict[str, dict[str, float]]:
    document = json.loads(await found.document(sha256))
    assert document["instance"] == "one"
    assert document["up"] >= 0
    result: dict[str, dict[str, float]] = document["seen"]
    return result


async def test_last_download_and_last_error_of_an_address_are_kept() -> None:
    found = download_log()
    found.failed(A, "10.0.0.1", 503, known=True)
    found.served(A, "::ffff:10.0.0.1")
    found.served(A, "10.0.0.2")
    assert set(await seen(found, A)) == {"10.0.0.1", "10.0.0.2"}
    assert set((await seen(found, A))["10.0.0.1"]) == {"ok", "error", "status"}
    assert set((await seen(found, A))["10.0.0.2"]) == {"ok"}
    assert await seen(found, B) == {}


async def test_errors_for_a_digest_count_on_when_it_becomes_known() -> None:
    found = download_log()
    found.failed(A, "10.0.0.1", 404, known=False)
    found.served(A, "10.0.0.2")
    assert set(await seen(found, A)) == {"10.0.0.1", "10.0.0.2"}
    assert json.loads(found.summary())["errors"] == 1


async def test_invented_digests_push_out_none_that_is_published() -> None:
    found = download_log(digests=2)
    found.served(A, "10.0.0.1")
    for number in range(10):
        found.failed(Sha256Hex(f"{number:064x}"), "10.0.0.9", 404, known=False)
    assert await seen(found, A)
    assert len([n for n in range(10) if await seen(found, Sha256Hex(f"{n:064x}"))]) == 2


async def test_longest_unseen_addresses_and_digests_go_first() -> None:
    found = download_log(digests=2, addresses=2)
    for sha256 in (A, B, C):
        found.served(sha256, "10.0.0.1")
    assert (bool(await seen(found, A)), bool(await seen(found, B)), bool(await seen(found, C))) == (
        False,
        True,
        True,
    )
    for number in range(3):
        found.served(B, f"10.0.1.{number}")
    found.served(B, None)
    assert set(await seen(found, B)) == {"10.0.1.1", "10.0.1.2"}


async def test_evicted_entry_shortens_the_covered_time_of_its_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = download_log(digests=2, addresses=2)

    async def covered(sha256: Sha256Hex) -> float:
        return float(json.loads(await found.document(sha256))["up"])

    now = 1_100.0
    found.served(A, "10.0.0.1")
    now = 1_200.0
    found.served(A, "10.0.0.2")
    assert await covered(A) == 200
    now = 1_300.0
    found.failed(A, "10.0.0.3", 503, known=True)
    assert await covered(A) == 200, "10.0.0.1 is forgotten, whose last time was 1 100"
    found.failed(B, "10.0.0.3", 404, known=False)
    assert await covered(B) == 300
    found.served(B, "10.0.0.3")
    assert await covered(C) == 300
    now = 1_400.0
    found.served(C, "10.0.0.3")
    now = 1_500.0
    assert (await covered(A), await covered(B), await covered(C)) == (100, 500, 500)
    assert json.loads(found.summary())["up"] == 500, "how long we can be asked is another matter"
    found.served(A, "10.0.0.3")
    assert await covered(A) == 100, "it was forgotten for a while"


async def test_a_document_of_many_addresses_is_whole_and_leaves_turns_to_others() -> None:
    found = download_log()
    count = DownloadLogLimits().addresses
    for number in range(count):
        found.served(A, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    making = asyncio.ensure_future(found.document(A))
    iterations = 0
    while not making.done():
        await asyncio.sleep(0)
        iterations += 1
        found.served(
            A, f"10.9.{iterations >> 8}.{iterations & 255}"
        )  # the oldest are dropped meanwhile
    assert iterations >= count / 500
    assert len(json.loads(await making)["seen"]) == count


async def test_addresses_beyond_the_most_are_forgotten_some_at_a_time() -> None:
    found = download_log(addresses=1_000)
    for number in range(5_000):
        found.served(A, f"10.0.{number >> 8}.{number & 255}")
        assert len(found._published[A].addresses) <= 1_000
    told = await seen(found, A)
    assert 980 < len(told) <= 1_000
    assert f"10.0.{4_999 >> 8}.{4_999 & 255}" in told


async def test_our_own_documents_come_with_those_of_the_others() -> None:
    class Others:
        async def query(self, path: str) -> list[bytes]:
            return [path.encode()]

        def known(self) -> tuple[str, ...]:
            return ("http://other",)

    found = download_log()
    assert (await AllReplicas(found, Others()).query(f"/seen/{A}"))[1] == f"/seen/{A}".encode()
    assert AllReplicas(found, Others()).count() == 2
    assert len(await AllReplicas(found, None).query("/seen")) == 1
    assert AllReplicas(found, None).count() == 1
