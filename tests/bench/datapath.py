"""The cost of filters in the data path, compared with Istio's own WasmPlugin: the start of a sidecar with them, and requests around a swap.

A start lasts from the start of the agent's process to the first answer that passed all filters, so it includes the signing of the agent's
certificate and all downloads. The sidecars and the registry are those of the row `wasmplugin`. Invariant: one system is measured at a time,
and the order changes each time.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from tests.bench import measure, wasmmesh
from tests.bench.plan import Plan
from tests.bench.swaps import OURS, THEIRS, percentile
from tests.bench.table import Figure, Result, at_most
from tests.bench.wasmmesh import HEADER, SYSTEMS, WasmMesh, value, wasm_mesh
from tests.parts import wire
from tests.parts.load import Load

FILTERS = (0, 1, 5, 20)
SIZE = 1 << 20
_PATIENCE = 60.0
_PAUSE = 0.005
"""Between two requests of a worker; a sidecar has two workers."""
_STARTS = 2
"""Starts of each system with each number of filters, per repeat: they are short."""
_FIRST = 90_000
"""Numbers of the swapped modules; different from those of the starts."""


async def run(plan: Plan) -> Result:
    """Seconds, milliseconds."""
    filters = plan.pick(FILTERS, (0, 2))
    starts: dict[int, dict[str, list[float]]] = {
        count: {system: [] for system in SYSTEMS} for count in filters
    }
    windows: dict[str, list[Window]] = {system: [] for system in SYSTEMS}
    async with wasm_mesh(plan.directory) as it:
        for number in range(max(filters)):
            content = await asyncio.to_thread(
                wasmmesh.module, number, size=SIZE, header=_header(number)
            )
            await it.push(f"start-{number}", content)
        there = 0
        for count in filters:
            for number in range(there, count):
                for system in SYSTEMS:
                    await it.apply(system, f"start-{number}", name=f"start-{number}")
            there = count
            for turn in range(_STARTS * plan.repeats):
                for system in SYSTEMS if turn % 2 else tuple(reversed(SYSTEMS)):
                    name = f"start-{system.lower()}-{count}-{turn}"
                    starts[count][system].append(await _start(it, system, name, count))
        for number in range(there):
            for system in SYSTEMS:
                await it.delete(system, f"start-{number}")
        await _swaps(plan, it, windows)
    return Result([*_start_figures(starts), *_window_figures(windows)])


def _header(number: int) -> str:
    return f"{HEADER}-{number}"


async def _start(it: WasmMesh, system: str, name: str, count: int) -> float:
    """Seconds. Removes the sidecar afterwards."""
    mesh, kept = it.mesh, it.mesh.stack
    try:
        async with AsyncExitStack() as mesh.stack:
            sidecar = await it.add_sidecar(system, name)
            wanted = {_header(number): value(number) for number in range(count)}
            async with asyncio.timeout(_PATIENCE):
                while not await _passed_all(sidecar.host, wanted):
                    await asyncio.sleep(0.01)
            took = measure.age(sidecar.envoy.process.pid)
    finally:
        mesh.stack = kept
    await mesh.remove_pod(name)
    return took


async def _passed_all(host: str, wanted: Mapping[str, str]) -> bool:
    try:
        answer = await wire.get(f"http://{host}/")
    except OSError:
        return False
    return answer.status == 200 and wanted.items() <= answer.headers.items()


@dataclass(frozen=True, slots=True)
class Window:
    """Requests before a swap and around it. Milliseconds."""

    before: float
    """p99 without a swap."""
    around: float
    """p99 of the seconds before and after the swap."""
    slowest: float
    requests: int
    failed: int


async def _swaps(plan: Plan, it: WasmMesh, windows: dict[str, list[Window]]) -> None:
    rounds = min(plan.repeats, 2)
    numbers = range(_FIRST, _FIRST + rounds + 1)
    for number in numbers:
        content = await asyncio.to_thread(wasmmesh.module, number, size=SIZE)
        await it.push(f"swap-{number}", content)
    for system in SYSTEMS:
        await it.add_sidecars(system, 1)
        await it.apply(system, f"swap-{_FIRST}")
        await Load(it.sidecars[system][0].host, header=HEADER).wait_for(
            value(_FIRST), timeout=_PATIENCE
        )
    for turn, number in enumerate(numbers[1:]):
        for system in SYSTEMS if turn % 2 else tuple(reversed(SYSTEMS)):
            windows[system].append(await _window(plan, it, system, number))


async def _window(plan: Plan, it: WasmMesh, system: str, number: int) -> Window:
    idle, half = plan.pick(30.0, 1.0), plan.pick(30.0, 1.0)
    load = Load(
        it.sidecars[system][0].host,
        header=HEADER,
        values={value(number - 1), value(number)},
        pause=_PAUSE,
        record=True,
    )
    async with load.steady() as report:
        await asyncio.sleep(idle)
        since = time.monotonic()
        await asyncio.sleep(half)
        await it.apply(system, f"swap-{number}")
        await asyncio.sleep(half)
    if value(number) not in report.first:
        raise RuntimeError(f"not measured: {system} did not swap within {half:g} s: {report}")
    before = [1000 * took for at, took in report.times if at < since]
    around = [1000 * took for at, took in report.times if at >= since]
    return Window(
        percentile(before, 0.99),
        percentile(around, 0.99),
        max(around),
        report.total,
        report.failed,
    )


def _start_figures(starts: Mapping[int, Mapping[str, list[float]]]) -> list[Figure]:
    return [
        Figure(
            f"start of a sidecar with {count} filter{'' if count == 1 else 's'}",
            "s",
            found[OURS],
            THEIRS,
            found[THEIRS],
        )
        for count, found in starts.items()
    ]


def _window_figures(windows: Mapping[str, list[Window]]) -> list[Figure]:
    ours, theirs = windows[OURS], windows[THEIRS]
    return [
        Figure("requests without a swap, p99", "ms", [one.before for one in ours], THEIRS, [one.before for one in theirs]),
        Figure("requests in the minute around a swap, p99", "ms", [one.around for one in ours], THEIRS, [one.around for one in theirs]),
        Figure("requests in the minute around a swap, slowest", "ms", [one.slowest for one in ours], THEIRS, [one.slowest for one in theirs]),
        Figure("requests that failed", "", [sum(one.failed for one in ours)], THEIRS, [sum(one.failed for one in theirs)], at_most(0)),
    ]  # fmt: skip
