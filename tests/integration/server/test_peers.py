"""Replicas over their real blob ports, and strangers in their place that lie, hang and drip."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import structlog

from autowasm.artifacts.peers import PEER_HEADER, PeerList, Peers
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.net.pools import Pools
from autowasm.settings import PeerSettings
from autowasm.telemetry.metrics import Metrics
from tests.integration.server.harness import MODULE, Serving, serving, sha256
from tests.parts import wire

DIGEST = sha256(MODULE)
QUICK = PeerSettings(
    query_timeout=0.3,
    idle=0.3,
    copy_timeout=2.0,
    query_pause=0.02,
    rate_window=0.3,
    hedge_after=0.1,
)
PATIENT = replace(QUICK, query_timeout=60.0, idle=60.0, rate_window=60.0, copy_timeout=60.0)
"""For peers that answer, on a busy machine too."""

Play = Callable[[bytes, asyncio.StreamWriter], Coroutine[None, None, None]]


@dataclass
class Stranger:
    """Something at a peer's address that answers as `play` does."""

    url: str
    requests: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def stranger(play: Play) -> AsyncIterator[Stranger]:
    found = Stranger("")
    playing: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                found.requests.append(request)
                task = asyncio.create_task(play(request, writer))
                playing.add(task)
                await asyncio.wait([task])
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield found
        for task in playing:
            task.cancel()
        await asyncio.sleep(0.01)  # the connections end in order: asyncio logs those that are cut


@dataclass
class Replica:
    peers: Peers
    known: PeerList
    store: BlobStore
    metrics: Metrics

    def copies(self, outcome: str) -> float:
        name = "autowasm_peer_copies_total"
        return self.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


@asynccontextmanager
async def replica(
    directory: Path, *urls: str, settings: PeerSettings = PATIENT, instance: str = "us"
) -> AsyncIterator[Replica]:
    settings, metrics = replace(settings, urls=urls), Metrics()
    async with AsyncExitStack() as stack:
        pools = stack.enter_context(Pools())
        enter = stack.enter_async_context
        store = await enter(BlobStore(directory / "replica", pools=pools, metrics=metrics))
        tasks = await enter(asyncio.TaskGroup())
        known = PeerList(settings, pools=pools)
        peers = await enter(
            Peers(
                known,
                instance=instance,
                store=store,
                settings=settings,
                module_bytes=1024 * 1024,
                pools=pools,
                metrics=metrics,
                tasks=tasks,
            )
        )
        yield Replica(peers, known, store, metrics)


def head(status: str, *, size: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"{PEER_HEADER}: them"]
    if size is not None:
        lines.append(f"content-length: {size}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answering(body: Play) -> Play:
    """ "I have it" to HEAD; `body` to GET."""

    async def play(request: bytes, writer: asyncio.StreamWriter) -> None:
        if request.startswith(b"HEAD"):
            writer.write(head("200 OK", size=len(MODULE)))
        else:
            await body(request, writer)

    return play


async def lies(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(head("200 OK", size=len(MODULE)) + b"x" * len(MODULE))


async def sends_half(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(head("200 OK", size=len(MODULE)) + MODULE[: len(MODULE) // 2])
    writer.close()


async def ends_early_in_chunks(_request: bytes, writer: asyncio.StreamWriter) -> None:
    promise = head("200 OK", size=len(MODULE)).removesuffix(b"\r\n")
    writer.write(
        promise + b"transfer-encoding: chunked\r\n\r\n8\r\n" + MODULE[:8] + b"\r\n0\r\n\r\n"
    )


async def stops_in_the_middle(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(head("200 OK", size=len(MODULE)) + MODULE[: len(MODULE) // 2])
    await asyncio.sleep(30)


async def promises_too_much(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(head("200 OK", size=2**40))


async def sends_elsewhere(_request: bytes, writer: asyncio.StreamWriter) -> None:
    answer = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    writer.write(answer)


async def hangs(_request: bytes, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def drips(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(head("200 OK", size=len(MODULE)))
    for number in range(len(MODULE)):
        writer.write(MODULE[number : number + 1])
        await asyncio.sleep(0.02)


async def is_no_peer(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(MODULE)}\r\n\r\n".encode() + MODULE)


@asynccontextmanager
async def peer(directory: Path, *, instance: str = "them") -> AsyncIterator[tuple[Serving, str]]:
    async with serving(directory / instance, instance=instance) as server:
        yield server, f"http://{server.host}"


async def test_module_is_copied_from_the_peer_that_has_it(tmp_path: Path) -> None:
    async with (
        peer(tmp_path, instance="a") as (_, empty),
        peer(tmp_path, instance="b") as (full, url),
        replica(tmp_path, empty, "http://127.0.0.1:1", url) as us,
    ):
        await full.put(MODULE)
        assert await us.peers.copy(DIGEST)
        assert us.store.size(DIGEST) == len(MODULE)
        assert (us.copies("copied"), us.copies("failed")) == (1, 0)


async def test_copy_fails_if_no_peer_has_the_module(tmp_path: Path) -> None:
    async with peer(tmp_path) as (_, url), replica(tmp_path, url) as us:
        assert not await us.peers.copy(DIGEST)
        assert us.copies("absent") == 1
    async with replica(tmp_path) as alone:
        assert not await alone.peers.copy(DIGEST)


@pytest.mark.parametrize(
    "bad",
    [
        lies,
        sends_half,
        ends_early_in_chunks,
        stops_in_the_middle,
        promises_too_much,
        sends_elsewhere,
        hangs,
        drips,
        is_no_peer,
    ],
)
async def test_bad_peer_costs_bounded_time_and_stores_nothing(tmp_path: Path, bad: Play) -> None:
    async with (
        stranger(answering(bad)) as them,
        replica(tmp_path, them.url, settings=QUICK) as us,
    ):
        async with asyncio.timeout(25):
            assert not await us.peers.copy(DIGEST)
        assert DIGEST not in us.store
        assert any(request.startswith(b"GET") for request in them.requests), "it was tried"
        assert us.copies("failed") == 1


@pytest.mark.parametrize("bad", [lies, sends_half, stops_in_the_middle])
async def test_good_peer_is_tried_after_a_bad_one(tmp_path: Path, bad: Play) -> None:
    async with (
        stranger(answering(bad)) as them,
        peer(tmp_path) as (good, url),
        replica(tmp_path, them.url, url) as us,
    ):
        await good.put(MODULE)
        assert await us.peers.copy(DIGEST)


@pytest.mark.parametrize("bad", [hangs, drips, stops_in_the_middle])
async def test_next_peer_is_tried_beside_a_slow_one(tmp_path: Path, bad: Play) -> None:
    """The slow one is never given up here: only another beside it can help."""
    begun = asyncio.Event()

    async def body(request: bytes, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await bad(request, writer)

    async def is_good(request: bytes, writer: asyncio.StreamWriter) -> None:
        await begun.wait()
        writer.write(head("200 OK", size=len(MODULE)))
        if request.startswith(b"GET"):
            writer.write(MODULE)

    async with (
        stranger(answering(body)) as slow,
        stranger(is_good) as good,
        replica(tmp_path, slow.url, good.url) as us,
    ):
        async with asyncio.timeout(25):
            assert await us.peers.copy(DIGEST)
        assert DIGEST in us.store


async def test_many_slow_peers_take_no_longer_than_the_copy_timeout(tmp_path: Path) -> None:
    patient = replace(QUICK, idle=60.0, rate_window=60.0, copy_timeout=4.0)
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(stranger(answering(drips))) for _ in range(8)]
        urls = (one.url for one in slow)
        us = await stack.enter_async_context(replica(tmp_path, *urls, settings=patient))
        async with asyncio.timeout(30):  # one after the other they would take 32 s
            assert not await us.peers.copy(DIGEST)
        assert us.copies("failed") == 1


async def test_a_copy_that_trickles_is_ended_below_the_minimum_rate(tmp_path: Path) -> None:
    patient = replace(QUICK, idle=60.0, copy_timeout=60.0)
    async with (
        stranger(answering(drips)) as them,
        replica(tmp_path, them.url, settings=patient) as us,
    ):
        async with asyncio.timeout(30):
            assert not await us.peers.copy(DIGEST)


async def test_silent_peers_keep_no_connection_from_a_good_one(tmp_path: Path) -> None:
    modules = [MODULE + bytes([number]) for number in range(60)]
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        silent = [await enter(stranger(hangs)) for _ in range(8)]
        good, url = await enter(peer(tmp_path))
        us = await enter(replica(tmp_path, *(one.url for one in silent), url))
        for module in modules:
            await good.put(module)
        async with asyncio.timeout(30):
            copies = (us.peers.copy(sha256(module)) for module in modules)
            assert all(await asyncio.gather(*copies))


async def test_peer_that_hangs_on_head_does_not_hold_up_another(tmp_path: Path) -> None:
    async with (
        stranger(hangs) as them,
        peer(tmp_path) as (good, url),
        replica(tmp_path, them.url, url) as us,
    ):
        await good.put(MODULE)
        async with asyncio.timeout(30):
            assert await us.peers.copy(DIGEST)


@pytest.mark.parametrize("silent", [1, 2, 3])
async def test_a_busy_peer_gets_at_most_three_requests_for_a_copy(
    silent: int, tmp_path: Path
) -> None:
    async def play(request: bytes, writer: asyncio.StreamWriter) -> None:
        if request.startswith(b"HEAD") and len(them.requests) <= silent:
            await asyncio.sleep(30)
        writer.write(head("200 OK", size=len(MODULE)))
        if request.startswith(b"GET"):
            writer.write(MODULE)

    unhurried = replace(PATIENT, query_timeout=1.0)
    async with stranger(play) as them, replica(tmp_path, them.url, settings=unhurried) as us:
        assert await us.peers.copy(DIGEST) is (silent < 3)
        assert us.copies("copied" if silent < 3 else "absent") == 1
        assert len([one for one in them.requests if one.startswith(b"HEAD")]) == min(silent + 1, 3)


async def test_concurrent_copies_share_one_download(tmp_path: Path) -> None:
    async with peer(tmp_path) as (them, url), replica(tmp_path, url) as us:
        await them.put(MODULE)
        assert all(await asyncio.gather(*(us.peers.copy(DIGEST) for _ in range(20))))
        assert them.metric("autowasm_blob_responses_total", method="GET", status="200") == 1
        assert us.copies("copied") == 1


async def test_request_of_a_peer_is_answered_at_once_without_a_fill(tmp_path: Path) -> None:
    async with peer(tmp_path) as (them, _):
        them.source.learn(DIGEST)
        async with asyncio.timeout(5):  # an Envoy's request is held for 10 s
            answer = await wire.request("GET", them.url(DIGEST), headers={PEER_HEADER: "x"})
        assert (answer.status, answer.headers[PEER_HEADER]) == (404, "them")
        assert them.source.fills == 0


async def test_own_address_is_dropped_from_the_peers_once_recognized(tmp_path: Path) -> None:
    async with peer(tmp_path, instance="us") as (ourselves, url), replica(tmp_path, url) as us:
        await ourselves.put(MODULE)
        assert us.peers.known() == (url,)
        assert not await us.peers.copy(DIGEST)
        assert us.peers.known() == ()


async def test_wait_all_have_returns_once_the_last_peer_has_the_module(tmp_path: Path) -> None:
    async with (
        peer(tmp_path, instance="a") as (one, first),
        peer(tmp_path, instance="b") as (two, second),
        replica(tmp_path, first, second, "http://127.0.0.1:1") as us,
    ):
        await one.put(MODULE)
        assert not await us.peers.wait_all_have(DIGEST, 0.2)
        waiting = asyncio.create_task(us.peers.wait_all_have(DIGEST, 60.0))
        await two.put(MODULE)
        assert await waiting
        assert await us.peers.wait_all_have(DIGEST, 60.0)


async def test_peer_queries_for_unknown_digests_are_limited_and_misses_remembered(
    tmp_path: Path,
) -> None:
    slow = replace(QUICK, query_timeout=1.0, seeks=2, missed_for=60.0)
    async with stranger(hangs) as them, replica(tmp_path, them.url, settings=slow) as us:
        digests = [Sha256Hex(f"{number:064x}") for number in range(10)]
        assert not any(await asyncio.gather(*(us.peers.seek(digest) for digest in digests)))
        assert len(them.requests) == 2
        assert not await us.peers.seek(digests[0])
        assert len(them.requests) == 2


async def test_peer_query_returns_all_valid_documents_and_drops_bad_ones(tmp_path: Path) -> None:
    async def document(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", size=2) + b"{}")

    async def endless(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", size=10**9) + b"x" * 4096)

    settings = replace(QUICK, query_timeout=2.0, document_bytes=1024)
    async with (
        stranger(document) as good,
        stranger(endless) as long,
        stranger(hangs) as silent,
        replica(tmp_path, good.url, long.url, silent.url, settings=settings) as us,
    ):
        assert await us.peers.query(f"/seen/{DIGEST}") == [b"{}"]
    async with (
        stranger(document) as ourselves,
        replica(tmp_path, ourselves.url, instance="them") as us,
    ):
        assert await us.peers.query(f"/seen/{DIGEST}") == []
        assert us.peers.known() == ()


@pytest.mark.parametrize("works", [True, False])
async def test_start_waits_for_the_first_lookup_even_if_it_fails(works: bool) -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        if not works:
            raise OSError("no name server")
        return ["http://10.0.0.1:8081"]

    with Pools() as pools:
        known = PeerList(PeerSettings(host="peers.example"), pools=pools, resolve=resolve)
        following = asyncio.create_task(known.run())
        async with asyncio.timeout(60):
            await known.settled()
        assert len(known.known()) == works
        following.cancel()
        async with asyncio.timeout(60):
            await PeerList(PeerSettings(), pools=pools).settled()


async def test_names_are_looked_up_again_and_a_failing_name_server_changes_nothing() -> None:
    answers: list[list[str] | OSError] = [
        ["http://10.0.0.1:8081"],
        OSError("no name server"),
        ["http://10.0.0.2:8081", "http://10.0.0.1:8081"],
    ]
    seen: list[tuple[str, ...]] = []

    def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("wasmer-peers.istio-system.svc.cluster.local", 8081)
        seen.append(known.known())
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    settings = PeerSettings(
        host="wasmer-peers.istio-system.svc.cluster.local", lookup_interval=0.01, lookup_pause=0.0
    )
    with Pools() as pools:
        known = PeerList(settings, pools=pools, resolve=resolve)
        following = asyncio.create_task(known.run())
        async with asyncio.timeout(60):
            while len(known.known()) < 2:
                await asyncio.sleep(0.01)
        following.cancel()
    one = ("http://10.0.0.1:8081",)
    assert seen[:3] == [(), one, one]


async def test_stored_module_causes_no_request_to_peers(tmp_path: Path) -> None:
    async with stranger(hangs) as them, replica(tmp_path, them.url) as us:
        async with us.store.stage() as stage:
            await asyncio.to_thread(stage.path.write_bytes, MODULE)
            await us.store.commit(stage, DIGEST)
        assert await us.peers.copy(DIGEST)
        assert await us.peers.seek(DIGEST)
        assert them.requests == []


async def test_unknown_digest_is_copied_from_a_peer_that_has_it(tmp_path: Path) -> None:
    async with peer(tmp_path) as (them, url), replica(tmp_path, url) as us:
        await them.put(MODULE)
        assert await us.peers.seek(DIGEST)
        assert DIGEST in us.store


async def test_cache_of_misses_is_bounded(tmp_path: Path) -> None:
    settings = replace(PATIENT, misses=2, missed_for=60.0)
    async with peer(tmp_path) as (them, url), replica(tmp_path, url, settings=settings) as us:
        for number in range(3):
            assert not await us.peers.seek(Sha256Hex(f"{number:064x}"))
        await them.put(MODULE)
        for number in (2, 0):  # the last miss is cached, the first is queried again
            assert not await us.peers.seek(Sha256Hex(f"{number:064x}"))
        assert them.metric("autowasm_blob_responses_total", method="HEAD", status="404") == 4


async def test_copy_ends_at_the_first_storage_error(tmp_path: Path) -> None:
    async with (
        peer(tmp_path, instance="a") as (one, first),
        peer(tmp_path, instance="b") as (two, second),
        replica(tmp_path, first, second) as us,
    ):
        for each in (one, two):
            await each.put(MODULE)
        (tmp_path / "replica" / "staging").rmdir()
        (tmp_path / "replica" / "staging").write_bytes(b"")
        with structlog.testing.capture_logs() as events:
            assert not await us.peers.copy(DIGEST)
        assert [event["event"] for event in events] == ["module not copied"]
        assert "staging" in events[0]["error"]
        assert (us.copies("no_room"), us.copies("failed")) == (1, 0)


async def test_answers_that_are_not_from_a_peer_are_ignored(tmp_path: Path) -> None:
    async def fails(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head("500 Internal Server Error", size=2) + b"{}")

    async with (
        stranger(is_no_peer) as other,
        stranger(fails) as failing,
        replica(tmp_path, other.url, failing.url) as us,
    ):
        assert await us.peers.query(f"/seen/{DIGEST}") == []
