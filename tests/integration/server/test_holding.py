"""Requests for modules that are not stored yet."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from autowasm.artifacts.peers import PEER_HEADER
from autowasm.errors import ContentRejected, SourceDenied, SourceUnavailable, StorageError
from autowasm.limits import ServeLimits
from tests.integration.server.harness import MODULE, Serving, serving, sha256, until
from tests.parts import wire

DIGEST = sha256(MODULE)
SHORT = ServeLimits(
    held_known=0.6, held_unknown=0.4, held_retry=0.02, max_held_retry=0.1, held_refused_retry=0.2
)
PATIENT = replace(SHORT, held_known=60.0, held_unknown=60.0)
"""For operations that succeed in the end, on a busy machine too."""


def known(server: Serving) -> None:
    server.source.learn(DIGEST)
    server.source.filler = lambda _: server.put(MODULE)


async def test_a_known_digest_is_held_until_it_is_filled_once_for_all(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        known(server)
        requests = [asyncio.create_task(wire.get(server.url(DIGEST))) for _ in range(20)]
        await until(lambda: server.metric("autowasm_blob_requests_held") == 20)
        server.source.may_fill.set()
        for answer in await asyncio.gather(*requests):
            assert (answer.status, answer.body) == (200, MODULE)
        assert server.source.fills == 1
        await until(
            lambda: server.metric("autowasm_blob_cache_requests_total", kind="origin") == 20
        )
        assert server.metric("autowasm_blob_requests_held") == 0


async def test_a_known_digest_that_does_not_come_is_503_never_404(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=SHORT) as server:
        known(server)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        answer = await wire.get(server.url(DIGEST))
        assert loop.time() - begun > 0.5
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert b"not stored on this replica yet" in answer.body
        # The fill outlives its waiter.
        server.source.may_fill.set()
        await until(lambda: DIGEST in server.store)
        assert (await wire.get(server.url(DIGEST))).body == MODULE
        assert server.source.fills == 1
        assert server.metric("autowasm_blob_cache_requests_total", kind="failed") == 1


@pytest.mark.parametrize(
    ("header", "held", "least"),
    [("300", 600, 0.1), ("1200", 600, 0.6), ("nonsense", 0.6, 0.5), ("-5", 0.6, 0.5), ("0", 0.6, 0.5)],
)  # fmt: skip
async def test_held_request_is_answered_at_envoys_timeout_or_its_own_limit(
    tmp_path: Path, header: str, held: float, least: float
) -> None:
    limits = replace(SHORT, held_known=held, max_held_known=600)
    async with serving(tmp_path, limits=limits) as server:
        known(server)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        answer = await wire.get(
            server.url(DIGEST), headers={"x-envoy-expected-rq-timeout-ms": header}
        )
        assert answer.status == 503
        assert loop.time() - begun >= least


async def test_a_very_long_envoy_timeout_is_bounded(tmp_path: Path) -> None:
    limits = ServeLimits(max_held_known=0.6, held_margin=0.1)
    async with serving(tmp_path, limits=limits) as server:
        known(server)
        answer = await wire.get(
            server.url(DIGEST), headers={"x-envoy-expected-rq-timeout-ms": "600000"}
        )
        assert answer.status == 503


async def test_a_failed_fill_is_retried_while_a_request_is_held(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=PATIENT) as server:
        known(server)
        server.source.may_fill.set()
        server.source.failures = [SourceUnavailable("no answer") for _ in range(3)]
        assert (await wire.get(server.url(DIGEST))).body == MODULE
        assert server.source.fills == 4


@pytest.mark.parametrize("error", [SourceDenied("wrong password"), ContentRejected("other bytes")])
async def test_a_refused_fill_is_rarely_retried_and_its_message_stays_private(
    tmp_path: Path, error: SourceDenied | ContentRejected
) -> None:
    # Ten requests that a busy machine spreads over seconds are held for more than one of the short pauses.
    limits = replace(SHORT, held_refused_retry=5.0)
    async with serving(tmp_path, limits=limits) as server:
        known(server)
        server.source.failures = [error] * 100
        answers = await asyncio.gather(*(wire.get(server.url(DIGEST)) for _ in range(10)))
        assert {answer.status for answer in answers} == {503}
        assert error.reason.encode() in answers[0].body
        assert str(error).encode() not in answers[0].body
        assert 1 <= server.source.fills <= 4


async def test_a_bug_in_a_fill_is_logged_and_answered_and_the_next_fill_helps(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, limits=PATIENT) as server:
        known(server)
        server.source.failures = [ZeroDivisionError("secret detail")]
        server.source.may_fill.set()
        with structlog.testing.capture_logs() as events:
            answer = await wire.get(server.url(DIGEST))
        assert (answer.status, answer.body) == (200, MODULE)
        assert server.source.fills == 2
        (event,) = [one for one in events if one["event"] == "on-demand fetch failed"]
        assert isinstance(event["exc_info"], ZeroDivisionError)


@pytest.mark.parametrize("peer", [False, True])
async def test_a_disk_that_fails_is_answered_503_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: bool
) -> None:
    async def fail(_: str) -> None:
        raise StorageError("cannot open the blob: Input/output error", reason="DiskFailed")

    async with serving(tmp_path) as server:
        monkeypatch.setattr(server.store, "open", fail)
        headers = {PEER_HEADER: "other"} if peer else {}
        with structlog.testing.capture_logs() as events:
            answer = await wire.get(server.url(DIGEST), headers=headers)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert b"Disk error on this replica (DiskFailed)" in answer.body
        (event,) = [one for one in events if one["event"] == "blob not readable"]
        assert "Input/output error" in event["error"]


async def test_storing_the_blob_releases_held_requests(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.source.learn(DIGEST)
        requests = asyncio.create_task(wire.get(server.url(DIGEST)))
        await until(lambda: server.metric("autowasm_blob_requests_held") == 1)
        await server.put(MODULE)  # the reconciler was faster than the fill
        assert (await requests).body == MODULE


async def test_an_unknown_digest_is_held_shortly_then_404(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=SHORT) as server:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        answer = await wire.get(server.url(DIGEST))
        assert loop.time() - begun > 0.35
        assert answer.status == 404
        assert DIGEST.encode() in answer.body
        assert server.source.fills == 0
        assert server.metric("autowasm_blob_cache_requests_total", kind="unknown") == 1


@pytest.mark.parametrize("how", ["stored", "known"])
async def test_an_unknown_digest_that_becomes_known_is_served(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as server:
        server.source.may_fill.set()
        requests = asyncio.create_task(wire.get(server.url(DIGEST)))
        await until(lambda: server.metric("autowasm_blob_requests_held") == 1)
        if how == "stored":
            await server.put(MODULE)
        else:
            known(server)
        assert (await requests).body == MODULE


async def test_invented_digests_do_not_pile_up(tmp_path: Path) -> None:
    async with serving(
        tmp_path, limits=ServeLimits(held_unknown_count=5, held_unknown=6)
    ) as server:
        requests = [asyncio.create_task(wire.get(server.url(f"{n:064x}"))) for n in range(5)]
        await until(lambda: server.metric("autowasm_blob_requests_held") == 5)
        async with asyncio.timeout(5):
            assert (await wire.get(server.url("f" * 64))).status == 404
        known(server)
        server.source.may_fill.set()
        assert (await wire.get(server.url(DIGEST))).status == 200  # published ones are not affected
        for answer in await asyncio.gather(*requests):
            assert answer.status == 404


async def test_a_damaged_blob_is_filled_again_and_the_client_sees_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        known(server)
        server.source.may_fill.set()
        await server.put(MODULE)
        assert (await wire.get(server.url(DIGEST))).body == MODULE
        (tmp_path / "blobs" / DIGEST).write_bytes(b"?" * len(MODULE))
        assert (await wire.get(server.url(DIGEST))).body == MODULE
        assert server.source.fills == 1
        assert server.metric("autowasm_blobs_damaged_total") == 1


async def test_failed_requests_are_logged_with_envoys_request_id(tmp_path: Path) -> None:
    digest = sha256(MODULE)
    async with serving(tmp_path, limits=SHORT) as it:
        it.source.learn(digest)
        it.source.failures = [SourceUnavailable("gone")]
        headers = {"x-request-id": "0f5c3c7e-6d0f-9d3b"}
        with structlog.testing.capture_logs(
            processors=[structlog.contextvars.merge_contextvars]
        ) as events:
            assert (await wire.get(it.url(digest), headers=headers)).status == 503
            await until(lambda: any(event["event"] == "answered" for event in events))
    told = {event["event"]: event.get("request_id") for event in events}
    assert told["on-demand fetch failed"] == told["answered"] == "0f5c3c7e-6d0f-9d3b"
