"""A running fork server of `tests/fakes/children.py`, and its processes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from autowasm.limits import PreflightLimits
from autowasm.preflight.processes import ForkServer
from autowasm.telemetry.metrics import Metrics

CHILDREN = "tests.fakes.children"


@asynccontextmanager
async def running(
    limits: PreflightLimits, metrics: Metrics, *, module: str = CHILDREN
) -> AsyncIterator[ForkServer]:
    """A fork server with its owner. No process of it may be left at the end."""
    server = ForkServer(limits, metrics=metrics, module=module)
    owner = asyncio.create_task(server.run())
    try:
        yield server
        family = await family_of(server)
    finally:
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)
    await until(lambda: not any(alive(pid) for pid in family))


async def family_of(server: ForkServer) -> set[int]:
    """The fork server and its children."""
    return {server.pid, *children_of(server.pid)} if server.pid is not None else set()


def children_of(parent: int | None) -> set[int]:
    """Children of a process, including zombies."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.add(int(entry.name))
    return found


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def until(condition: object, *, seconds: float = 20.0) -> None:
    """Wait for a condition. Only a hang exceeds the deadline, not a busy machine."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        await asyncio.sleep(0.01)
