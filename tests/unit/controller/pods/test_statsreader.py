"""The reader: where it asks, what it makes of each answer, and how much of it at once. Servers are on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
from yarl import URL

from autowasm.controller.pods import envoystats
from autowasm.controller.pods.envoystats import ReadFailure, Reading, SidecarStats, UnreadStats
from autowasm.controller.pods.podmatching import Pod
from autowasm.controller.pods.statsreader import StatsReader
from autowasm.limits import StatsLimits
from autowasm.telemetry.metrics import Metrics
from tests.parts import ports

POD = Pod("team", "a", b"a" * 16, (), "127.0.0.1", "Running", 1, injected=True)
LIMITS = StatsLimits(rate=10_000, deadline=30, page_bytes=4000)
BODY = b"envoy_server_concurrency{} 2\nenvoy_listener_manager_listener_create_success{} 1\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes = BODY, *, status: str = "200 OK", more: str = "") -> Handler:
    """Answers each request so."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    return handle


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server; its port."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def reader(
    port: int,
    *,
    limits: StatsLimits = LIMITS,
    metrics: Metrics | None = None,
    shared: bool = False,
) -> AsyncIterator[StatsReader]:
    async with StatsReader(
        is_shared=lambda _: shared, limits=limits, metrics=metrics or Metrics(), port=port
    ) as found:
        yield found


async def read(handler: Handler, pod: Pod = POD, *, limits: StatsLimits = LIMITS) -> Reading:
    async with serving(handler) as port, reader(port, limits=limits) as it:
        return await it.read_pod(pod)


async def test_statistics_are_read_with_one_request_for_them() -> None:
    heads: list[bytes] = []

    async def handle(source: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await source.readuntil(b"\r\n\r\n"))
        await answer()(_again(heads[0]), writer)

    reading = await read(handle)

    assert isinstance(reading, SidecarStats)
    assert reading.is_envoy
    (head,) = heads
    assert head.startswith(f"GET {envoystats.TARGET} HTTP/1.1\r\n".encode())
    assert b"\r\nConnection: close\r\n".lower() in head.lower()
    assert b"cookie" not in head.lower()
    assert b"authorization" not in head.lower()


def _again(head: bytes) -> asyncio.StreamReader:
    source = asyncio.StreamReader()
    source.feed_data(head)
    return source


@pytest.mark.parametrize(
    ("handler", "why", "detail"),
    [
        (answer(status="404 Not Found"), ReadFailure.STATUS, "404"),
        (answer(status="302 Found", more="location: /elsewhere\r\n"), ReadFailure.STATUS, "302"),
        (answer(b"# " + b"x" * 4000), ReadFailure.TOO_LARGE, "4000"),
        (answer(b"<html>\n"), ReadFailure.NOT_PROMETHEUS, ""),
        (answer(b"\x1f\x8b", more="content-encoding: gzip\r\n"), ReadFailure.NOT_PROMETHEUS, ""),
        (answer(BODY, status="x"), ReadFailure.BROKEN, ""),
        (answer(more="content-length: 999\r\n"), ReadFailure.BROKEN, ""),
        (answer(more="transfer-encoding: chunked\r\n"), ReadFailure.BROKEN, ""),
        (answer(more=f"x: {'y' * 100_000}\r\n"), ReadFailure.BROKEN, ""),
    ],
)
async def test_unusable_answer_is_classified(
    handler: Handler, why: ReadFailure, detail: str
) -> None:
    assert await read(handler) == UnreadStats(why, detail)


async def test_connection_that_is_closed_without_an_answer_is_broken() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    assert await read(close) == UnreadStats(ReadFailure.BROKEN)


async def test_body_without_end_is_cut_off_at_the_limit() -> None:
    async def endless(source: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await source.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"# x\n" * 1000)
                await writer.drain()

    assert await read(endless) == UnreadStats(ReadFailure.TOO_LARGE, "4000")


async def test_silent_server_times_out() -> None:
    ended = asyncio.Event()

    async def silent(source: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await source.readuntil(b"\r\n\r\n")
        await source.read()  # until the client closes
        writer.close()
        ended.set()

    assert await read(silent, limits=replace(LIMITS, deadline=0.05)) == UnreadStats(
        ReadFailure.TIMEOUT
    )
    await asyncio.wait_for(ended.wait(), 30)


async def test_closed_port_is_refused_with_the_systems_reason() -> None:
    async with reader(ports.free_port()) as it:
        reading = await it.read_pod(POD)
    assert isinstance(reading, UnreadStats)
    assert reading.why is ReadFailure.REFUSED
    assert "refused" in reading.message.lower()


@pytest.mark.parametrize(
    ("pod", "shared", "why"),
    [
        (msgspec.structs.replace(POD, injected=False), False, ReadFailure.NO_SIDECAR),
        (msgspec.structs.replace(POD, ips=""), False, ReadFailure.NO_ADDRESS),
        (msgspec.structs.replace(POD, ips="localhost"), False, ReadFailure.NO_ADDRESS),
        (msgspec.structs.replace(POD, ips="127.0.0.1/x"), False, ReadFailure.NO_ADDRESS),
        (msgspec.structs.replace(POD, phase="Failed"), False, ReadFailure.NO_ADDRESS),
        (POD, True, ReadFailure.SHARED_ADDRESS),
    ],
)
async def test_pod_without_a_sidecar_of_its_own_gets_no_request(
    pod: Pod, shared: bool, why: ReadFailure
) -> None:
    connections = []

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.close()

    async with serving(count) as port, reader(port, shared=shared) as it:
        assert await it.read_pod(pod) == UnreadStats(why)
    assert connections == []


async def test_readings_are_by_pod_and_counted_by_result() -> None:
    metrics = Metrics()
    pods = [msgspec.structs.replace(POD, uid=bytes([number] * 16)) for number in range(5)]
    pods.append(msgspec.structs.replace(POD, uid=b"z" * 16, injected=False))
    async with serving(answer()) as port, reader(port, metrics=metrics) as it:
        readings = await it.read(iter(pods))

    assert readings.keys() == {pod.uid for pod in pods}
    assert sum(isinstance(one, SidecarStats) for one in readings.values()) == 5

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"autowasm_sidecar_{name}", labels)

    assert value("reads_total", result="read") == 5
    assert value("reads_total", result="no_sidecar") == 1
    assert value("read_duration_seconds_count") == 5


class Instant(StatsReader):
    """Without a network: every page is there after `seconds`."""

    seconds = 0.0
    running = 0
    most = 0

    async def _page(self, url: URL) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.append((asyncio.get_running_loop().time(), str(url.host)))
        await asyncio.sleep(self.seconds)
        self.running -= 1
        return BODY

    @property
    def begun(self) -> list[tuple[float, str]]:
        return self.__dict__.setdefault("_begun", [])


def pods(count: int) -> list[Pod]:
    return [
        msgspec.structs.replace(
            POD, uid=number.to_bytes(16), ips=f"10.0.{number // 250}.{number % 250}"
        )
        for number in range(count)
    ]


def instant(limits: StatsLimits) -> Instant:
    return Instant(
        is_shared=lambda _: False,
        limits=limits,
        metrics=Metrics(),
        clock=asyncio.get_running_loop().time,
    )


@pytest.mark.looptime
async def test_all_callers_together_begin_no_more_than_the_rate() -> None:
    async with instant(StatsLimits()) as it:
        await asyncio.gather(it.read(pods(130)), it.read(pods(70)))

    times = [time for time, _ in it.begun]
    assert len(times) == 200
    for first in times:
        assert sum(first <= time < first + 0.999 for time in times) <= 50
    assert times[-1] - times[0] == pytest.approx(199 / 50)


@pytest.mark.looptime
async def test_slow_pods_take_no_more_than_the_slots() -> None:
    async with instant(StatsLimits(concurrent=3)) as it:
        it.seconds = 1.0
        await asyncio.gather(it.read(pods(8)), it.read(pods(8)))
    assert it.most == 3


@pytest.mark.looptime
async def test_cancelled_reading_frees_its_slots() -> None:
    async with instant(StatsLimits(concurrent=2)) as it:
        it.seconds = 100.0
        first = asyncio.create_task(it.read(pods(10)))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.wait([first])
        it.seconds = 0.0
        assert len(await it.read(pods(10))) == 10


@pytest.mark.looptime
async def test_ipv6_address_is_asked_as_such() -> None:
    async with instant(StatsLimits()) as it:
        await it.read_pod(msgspec.structs.replace(POD, ips="fd00::1,10.0.0.1"))
    assert [host for _, host in it.begun] == ["fd00::1"]
