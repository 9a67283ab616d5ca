"""Slow and aborting clients: a thousand that read at 10 KB/s, hundreds that disconnect, and a small blob requested meanwhile.

The rival of the last one is the same server without other load.
"""

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.bench import load, measure
from tests.bench.plan import Plan
from tests.bench.servers import Server, serving
from tests.bench.table import Figure, Result, at_most, ratio_at_most
from tests.parts import ports

SMALL, LARGE = 64 << 10, 5 << 20
_RATE = 10_000
"""Bytes a second that a slow client reads."""
_STEP = 0.5
_RECEIVE_BUFFER = 16 << 10
_RESET = struct.pack("ii", 1, 0)
_DEADLINE = 30 + LARGE / (64 << 10)
"""Seconds that the server allows for a send of LARGE: `ServeLimits.send_base` and `send_rate`."""


async def run(plan: Plan) -> Result:
    """The cost of slow and aborting clients."""
    clients = plan.pick(1000, 50)
    notes = []
    async with serving(plan.directory, [SMALL, LARGE]) as both:
        server = both.ours
        idle = [await _p99(plan, server, both.urls[SMALL]) for _ in range(plan.repeats)]
        before = measure.memory(server.pid).resident
        async with _slow_clients(server, both.urls[LARGE], clients) as readers:
            with_slow, cpu = [], []
            for _ in range(plan.repeats):
                used, begun = measure.cpu_seconds(server.pid), time.monotonic()
                await asyncio.sleep(plan.pick(5.0, 1.0))
                cpu.append(
                    100 * (measure.cpu_seconds(server.pid) - used) / (time.monotonic() - begun)
                )
                with_slow.append(await _p99(plan, server, both.urls[SMALL]))
            grown = (measure.memory(server.pid).resident - before) * 1024 / clients
            cut: list[float] = []
            if plan.small:
                notes.append(
                    "Whether slow clients are cut by their deadline takes two minutes: not with SIZE=small."
                )
            else:
                cut.append(await readers.until_cut(_DEADLINE + 30))
        aborted, tracebacks = plan.pick(600, 60), 0
        await _abort(server, both.urls[LARGE], aborted)
        log = await asyncio.to_thread(server.log.read_text)
        tracebacks = len(re.findall("Traceback", log))
        after = [await _p99(plan, server, both.urls[SMALL])]
    figures = [
        Figure("64 KiB beside slow clients, p99", "ms", with_slow, "idle", idle, ratio_at_most(3)),
        Figure(f"{clients} clients at 10 KB/s, processor", "% of a core", cpu),
        Figure(f"{clients} clients at 10 KB/s, memory for each", "KiB", [grown]),
        Figure(f"{aborted} aborted downloads, tracebacks", "", [tracebacks], budget=at_most(0)),
        Figure("64 KiB after them, p99", "ms", after, "idle", [idle[-1]]),
    ]
    if cut:
        figures.append(Figure("slow clients that the deadline had cut", "", cut))
    return Result(figures, notes=notes)


async def _p99(plan: Plan, server: Server, url: str) -> float:
    found = await load.keep_alive(server, url, connections=1, seconds=plan.pick(3.0, 0.5))
    return found.p99


class _Readers:
    """Sockets that one task reads slowly."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self.open = sockets
        self.cut = 0

    async def read(self) -> None:
        while True:
            begun = time.monotonic()
            for one in self.open[:]:
                try:
                    if one.recv(int(_RATE * _STEP)):
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                self.open.remove(one)
                self.cut += 1
                one.close()
            await asyncio.sleep(max(0.0, _STEP - (time.monotonic() - begun)))

    async def until_cut(self, seconds: float) -> float:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.open:
                    await asyncio.sleep(0.5)
        return float(self.cut)


@asynccontextmanager
async def _slow_clients(server: Server, url: str, count: int) -> AsyncIterator[_Readers]:
    sockets = [await _asked(server, url, _RECEIVE_BUFFER) for _ in range(count)]
    readers = _Readers(sockets)
    task = asyncio.create_task(readers.read(), name="slow readers")
    try:
        yield readers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for one in readers.open:
            one.close()


async def _asked(server: Server, url: str, buffer: int) -> socket.socket:
    """A connection on which `url` was requested and nothing was read."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    one.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(one, (ports.LOOPBACK, server.port))
    await loop.sock_sendall(one, f"GET {url} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    return one


async def _abort(server: Server, url: str, count: int) -> None:
    """Disconnect after the first bytes, alternately with a reset and with a normal close."""
    loop = asyncio.get_running_loop()

    async def one(number: int) -> None:
        client = await _asked(server, url, _RECEIVE_BUFFER)
        await loop.sock_recv(client, 4096)
        if number % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.close()

    for begin in range(0, count, 50):
        await asyncio.gather(*(one(number) for number in range(begin, min(begin + 50, count))))
