"""A process that is started with the environment of `VirtualTime` sees time pass on all its clocks, and only there."""

import asyncio
import json
import sys
import time
from pathlib import Path

from tests.parts.faults.virtualtime import VirtualTime

_PROGRAM = """
import datetime, json, sys, time
import msgspec
for _ in sys.stdin:
    now = datetime.datetime.now(datetime.timezone.utc)
    read = msgspec.json.decode(b'"2026-01-01T00:00:00Z"', type=datetime.datetime)
    clocks = [time.time(), time.time_ns() / 1e9, now.timestamp(), time.monotonic(), time.monotonic_ns() / 1e9]
    print(json.dumps([clocks, read.year]), flush=True)
"""


async def test_time_passes_at_once_on_both_clocks(tmp_path: Path) -> None:
    virtual = VirtualTime(tmp_path / "time")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PROGRAM,
        env=virtual.environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    shown = []
    try:
        for passes in (0.0, 3600.0, 60.0):
            if passes:
                await virtual.pass_(passes, [])
            process.stdin.write(b"\n")
            clocks, year = json.loads(await process.stdout.readline())
            shown.append(clocks)
            assert year == 2026, "a datetime is still one to msgspec"
    finally:
        process.stdin.close()
        await process.wait()
    for before, after, passed in zip(shown, shown[1:], (3600.0, 60.0), strict=False):
        for earlier, later in zip(before, after, strict=True):
            assert later - earlier >= passed
    assert virtual.passed == 3660.0
    assert virtual.time() > time.time() + 3659
