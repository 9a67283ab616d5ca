"""AUTOWASM_SOAK_CHANGES changes, three a second: the memory and open files of a replica do not grow.

The default is 120. Two thousand and more reveal slower growth.
"""

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from autowasm.limits import StoreLimits
from tests.chaos.checks import Audited, unharmed
from tests.parts.fleet import Fleet
from tests.parts.wasmer import Wasmer

CHANGES = int(os.environ.get("AUTOWASM_SOAK_CHANGES", "120"))
CHANGES_A_SECOND = 3
WARM_CHANGES = 30
"""Changes until caches and pools have their final size."""
EXTRA = "extra"
_LEVEL = re.compile(r"\S+ \[(\w+) *\]")

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(4 * CHANGES + 300),
]


@dataclass(frozen=True, slots=True)
class Held:
    """The use of one process. `memory` in MiB; `files` without those of stored modules, some of which wasmer keeps open on purpose."""

    memory: float
    files: int
    threads: int


def _held(replica: Wasmer) -> Held:
    folder = Path(f"/proc/{replica.process.pid}")
    lines = (folder / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    files = list(_open_files(folder / "fd"))
    others = [file for file in files if "/cache/blobs/" not in file]
    assert len(files) - len(others) <= StoreLimits().open_files
    return Held(int(status["VmRSS"].split()[0]) / 1024, len(others), int(status["Threads"]))


def _open_files(folder: Path) -> Iterator[str]:
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # closed by now
            yield str(file.readlink())


async def _change(fleet: Fleet, changes: int) -> None:
    """`data` gets a new module, and with every fifth change another AutoWasm is created or deleted."""
    loop = asyncio.get_running_loop()
    for change in range(changes):
        turn = loop.time()
        await fleet.apply("data")
        if change % 10 == 4:
            await fleet.apply(EXTRA)
        elif change % 10 == 9:
            await fleet.installation.kubectl.run("delete", "aw", EXTRA)
            del fleet.wanted[EXTRA]
        await asyncio.sleep(max(0.0, turn + 1 / CHANGES_A_SECOND - loop.time()))


async def test_changes_all_the_time_make_nothing_grow(fleet: Fleet) -> None:
    audited = await Audited.begin(fleet)
    async with unharmed(fleet):
        await _change(fleet, WARM_CHANGES)
        await fleet.settled()
        before = [await asyncio.to_thread(_held, replica) for replica in fleet.replicas]
        await _change(fleet, CHANGES)
        await fleet.settled()
        after = [await asyncio.to_thread(_held, replica) for replica in fleet.replicas]
    for then, now in zip(before, after, strict=True):
        assert now.threads <= then.threads + 2, (before, after)
        assert now.files <= then.files + 10, (before, after)
        assert now.memory <= then.memory * 1.15 + 8, (before, after)
    assert await audited.rewritten() == []
    errors = [line for one in fleet.replicas for line in await asyncio.to_thread(_errors, one)]
    assert errors == []


def _errors(replica: Wasmer) -> list[str]:
    """Lines of its log that should alert an operator."""
    lines = replica.process.log.read_text().splitlines()
    levels = [(found[1], line) for line in lines if (found := _LEVEL.match(line))]
    assert any(level == "info" for level, _ in levels), "the log has the form that is looked for"
    wrong = [line for level, line in levels if level in {"error", "critical"}]
    return wrong + [line for line in lines if line.startswith(("Traceback", "Exception"))]
