"""Measurements of a process from outside: processor seconds, memory, and the pages of a file in the page cache.

Linux only, through /proc. Not a profiler.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIN = Path(__file__).with_name("pin.py")
SERVER_CPU, CLIENT_CPU = 0, 1


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB: resident, of that private to the process, and the peak."""

    resident: float
    anonymous: float
    peak: float


def cpu_seconds(pid: int) -> float:
    """Processor seconds of all threads of the process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> Memory:
    """Now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return Memory(*(int(found[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon", "VmHWM")))


def forget_peak(pid: int) -> None:
    """Reset the peak to the current value."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def drop_from_page_cache(file: Path) -> None:
    """Drop the file from the page cache, so the next reader waits for the disk. Works for every user that may read the file."""
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def pinned(cpu: int | None, *, cgroup: Path | None = None) -> list[str | Path]:
    """A command prefix that runs a command on one processor, or on all of them if there is only one or `cpu` is None."""
    which = [] if cpu is None else ["--cpu", str(cpu)]
    where: list[str | Path] = ["--cgroup", cgroup] if cgroup else []
    return [sys.executable, "-S", PIN, *which, *where, "--"]


async def json_of(
    command: Sequence[str | Path],
    *,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a program that prints one JSON object as its last line. Raises RuntimeError with its output."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise RuntimeError(f"{command}: no end within {timeout:g} s") from error
    if process.returncode != 0 or not out.strip():
        raise RuntimeError(f"{command}: status {process.returncode}\n{err.decode()[-4000:]}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def children(pid: int) -> list[int]:
    """The running children of this process."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for file in files for word in file.read_text().split()]


def age(pid: int) -> float:
    """Seconds since the process was started, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
