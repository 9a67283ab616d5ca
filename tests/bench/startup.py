"""The time that a person waits for a command, and a cluster for a new replica.

The rivals of the commands are an interpreter that does nothing, and `crane`, which is not written in Python.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.plan import Plan
from tests.bench.reconcile import fill, installation_for, synced
from tests.bench.servers import TEMPLATE
from tests.bench.table import Figure, Result, at_most
from tests.parts import provision, wat
from tests.parts.wasmer import Wasmer, program, standalone


async def run(plan: Plan) -> Result:
    """Seconds."""
    crane = await asyncio.to_thread(provision.crane)
    runs: dict[str, list[float]] = {}
    commands: dict[str, list[str | Path]] = {
        "wasmc --help": [program("wasmc"), "--help"],
        "wasmc push --help": [program("wasmc"), "push", "--help"],
        "wasmer --help": [program("wasmer"), "--help"],
        "wasmer --version": [program("wasmer"), "--version"],
        "python": [sys.executable, "-I", "-c", "pass"],
        "crane": [crane, "--help"],
    }
    for _ in range(max(plan.repeats, plan.pick(5, 1))):
        for name, command in commands.items():
            runs.setdefault(name, []).append(await _seconds(command))
    alone = [await _standalone(plan.directory / f"s{turn}") for turn in range(plan.repeats)]
    cold, again = await _controller(plan)
    budget = at_most(0.3)
    figures = [
        Figure("wasmc --help", "s", runs["wasmc --help"], "python", runs["python"], budget),
        Figure("wasmc --help", "s", runs["wasmc --help"], "crane", runs["crane"]),
        Figure("wasmc push --help", "s", runs["wasmc push --help"], budget=budget),
        Figure("wasmer --help", "s", runs["wasmer --help"], budget=budget),
        Figure("wasmer --version", "s", runs["wasmer --version"], budget=budget),
        Figure("wasmer standalone, start to ready", "s", alone),
        Figure("wasmer controller, start to ready, nothing to do", "s", cold),
        Figure(f"the same, {plan.pick(1000, 20)} AutoWasms in place", "s", again),
    ]
    return Result(figures)


async def _seconds(command: Sequence[str | Path]) -> float:
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    if await process.wait() != 0:
        raise RuntimeError(f"{command}: status {process.returncode}")
    return time.perf_counter() - begun


async def _standalone(directory: Path) -> float:
    begun = time.perf_counter()
    async with standalone(directory, template=TEMPLATE):
        return time.perf_counter() - begun


async def _controller(plan: Plan) -> tuple[list[float], list[float]]:
    """Without and with previously published AutoWasms."""
    count = plan.pick(1000, 20)
    async with installation_for(plan.directory / "cluster") as installation:
        wasmer = installation.wasmer
        cold = [await _restart(wasmer) for _ in range(plan.repeats)]
        image = await installation.push("v1", wat.header_filter("x"))
        await fill(installation, image, count)
        await synced(installation, count)
        again = [await _restart(wasmer) for _ in range(plan.repeats)]
    return cold, again


async def _restart(wasmer: Wasmer) -> float:
    await wasmer.process.stop()
    begun = time.perf_counter()
    await wasmer.start(timeout=120)
    return time.perf_counter() - begun
