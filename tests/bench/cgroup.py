"""A memory cgroup with the limit that the chart leaves to wasmer, if this machine allows it.

Version 2 needs the controller in the parent's `cgroup.subtree_control`; version 1 a writable `memory` hierarchy. Invariant:
the group is removed afterwards, and a limit that cannot be set is reported.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from autowasm.limits import MIB, PreflightLimits
from autowasm.units import parse_size

_ROOT = Path("/sys/fs/cgroup")
_VALUES = Path(__file__).parents[2] / "manifests/helm/wasmer/values.yaml"
FORK_SERVER = 40 * MIB
"""The memory that it uses at rest."""


@dataclass(frozen=True, slots=True)
class Group:
    """Processes join through `directory`; `peak` and `killed` are their results."""

    directory: Path
    limit: int

    @property
    def peak(self) -> float:
        """Peak memory of the group in MiB, including the page cache and socket buffers charged to it."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with contextlib.suppress(OSError):
                return int((self.directory / name).read_text()) / (1 << 20)
        return 0.0

    @property
    def killed(self) -> int:
        """Processes that the kernel killed for lack of memory."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                lines = (self.directory / name).read_text().splitlines()
                return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
        return 0


def chart_limit() -> int:
    """Bytes that the shipped chart allows the container, minus the memory that the fork server and two children may use meanwhile."""
    values = yaml.safe_load(_VALUES.read_text())
    limits = PreflightLimits()
    children = limits.run_memory + max(limits.run_memory, limits.compile_memory)
    return parse_size(values["resources"]["limits"]["memory"]) - FORK_SERVER - children


@asynccontextmanager
async def memory_group(name: str, *, limit: int) -> AsyncIterator[Group | None]:
    """None if this machine allows no such group."""
    group = await asyncio.to_thread(_make, f"autowasm-{name}-{os.getpid()}", limit)
    try:
        yield group
    finally:
        if group is not None:
            await _remove(group.directory)


def _make(name: str, limit: int) -> Group | None:
    for parent, file in ((_ROOT, "memory.max"), (_ROOT / "memory", "memory.limit_in_bytes")):
        directory = parent / name
        try:
            directory.mkdir()
        except OSError:
            continue
        # A plain folder (version 1 has a tmpfs above its hierarchies) and a group without the controller lack this file.
        try:
            if (directory / file).exists():
                (directory / file).write_text(str(limit))
                return Group(directory, limit)
        except OSError:
            pass
        directory.rmdir()
    return None


async def _remove(directory: Path) -> None:
    for _ in range(100):
        try:
            directory.rmdir()
        except OSError:  # the kernel takes a moment to release the last process
            await asyncio.sleep(0.05)
        else:
            return
