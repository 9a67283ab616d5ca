"""The load generator as a coroutine, and its results.

It discards bodies without copying them, so the server is the limit. One JSON line per run.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from tests.bench import measure, tools
from tests.bench.servers import Server

_LONGEST = 180


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a run. Times in milliseconds, `seconds` for the whole, `cpu` of the server in seconds."""

    done: int
    failed: int
    unfinished: int
    seconds: float
    megabytes: float
    """A second."""
    requests: float
    """A second."""
    p50: float
    p99: float
    slowest_connect: float
    cpu: float
    peak: float
    """Peak memory of the server during the run, in MiB."""

    @property
    def lost(self) -> int:
        """Requests that failed or did not end in time."""
        return self.failed + self.unfinished


async def keep_alive(
    server: Server, url: str, *, connections: int, seconds: float = 0.0, requests: int = 0
) -> Load:
    """Each connection repeats the request for `seconds` or until `requests` are complete."""
    limit = ["-d", f"{seconds:g}"] if seconds else ["-n", str(requests), "-t", str(_LONGEST)]
    return await _run(server, url, ["-c", str(connections), *limit])


async def herd(server: Server, url: str, *, clients: int) -> Load:
    """One new connection and one request for each client, all at once."""
    words = ["-c", str(clients), "-n", str(clients), "-N", "-t", str(_LONGEST)]
    return await _run(server, url, words)


async def _run(server: Server, url: str, words: list[str]) -> Load:
    program: Path = await asyncio.to_thread(tools.blobload)
    command = [*measure.pinned(measure.CLIENT_CPU), program, "-p", str(server.port), "-u", url]
    measure.forget_peak(server.pid)
    before = measure.cpu_seconds(server.pid)
    found = await measure.json_of([*command, *words], timeout=_LONGEST + 30)
    if found["badstatus"]:
        raise RuntimeError(f"{server.name}{url}: {found['badstatus']} answers were not 2xx")
    return Load(
        done=found["done"],
        failed=found["failed"],
        unfinished=found["unfinished"] if "-n" in words else 0,
        seconds=found["secs"],
        megabytes=found["MBps"],
        requests=found["rps"],
        p50=found["p50"],
        p99=found["p99"],
        slowest_connect=found["connmax"],
        cpu=measure.cpu_seconds(server.pid) - before,
        peak=measure.memory(server.pid).peak,
    )
