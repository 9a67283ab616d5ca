"""Swaps of a module, compared with Istio's own WasmPlugin: same istiod, same registry, same module, real agents, one system after the other.

Both systems have the same number of sidecars, which are under a steady load during their swaps. A swap begins with the apply at the API
server; a sidecar has the module when the first answer carries the new value of the header. The registry is local, 200 ms away, or behind a
shared link of 1 MB/s. Parameters: `SIDECARS` (counts) and `SWAPS` (of each system) in the environment.
"""

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from tests.bench import machine, wasmmesh
from tests.bench.plan import Plan
from tests.bench.swaps import OURS, THEIRS, Swap, figures
from tests.bench.table import Figure, Result, show
from tests.bench.wasmmesh import HEADER, SYSTEMS, WasmMesh, value, wasm_mesh
from tests.parts import pypi, releases
from tests.parts.load import Load, LoadReport
from tests.parts.rollouts import StagedSidecar

log = logging.getLogger(__name__)

SIZE = 1 << 20
"""Bytes of the module, as of filters from Rust or TinyGo."""
PATIENCE = 45.0
"""Seconds for a swap: more than the agent's deadline for a download, 30 s."""

_REQUESTS_A_SECOND = 800
"""Maximum rate to all sidecars of a system together."""
_BEFORE, _AFTER = 0.3, 1.0
"""Seconds of load around the swap."""


@dataclass(frozen=True, slots=True)
class Registry:
    """The link to the registry. Seconds, bytes a second (0: unlimited)."""

    name: str
    round_trip: float = 0.0
    rate: float = 0.0
    share: float = 1.0
    """The share of the swaps that are run: they take long."""

    @property
    def is_slow(self) -> bool:
        """Whether there is a link in front of the registry."""
        return bool(self.round_trip or self.rate)

    def rounds(self, swaps: int) -> int:
        """Swaps of each system."""
        return max(3, round(swaps * self.share))


REGISTRIES = (
    Registry(""),
    Registry(", registry 200 ms away", round_trip=0.2, share=1 / 3),
    Registry(", registry at 1 MB/s", rate=1e6, share=1 / 6),
)
_WITHIN = 0.25
"""The budget for one sidecar with an undisturbed registry, in seconds; it includes 0.1 s that istiod waits for further changes."""


async def run(plan: Plan) -> Result:
    """Seconds, requests, MB, MiB."""
    counts = sorted(
        {int(one) for one in os.environ.get("SIDECARS", plan.pick("1,8,32", "1,2")).split(",")}
    )
    swaps = int(os.environ.get("SWAPS", plan.pick("30", "3")))
    found: list[Figure] = []
    notes = [_conditions(swaps)]
    noisy: list[str] = []
    numbers = itertools.count(1)
    async with wasm_mesh(plan.directory) as it:
        for count in counts:
            await asyncio.gather(*(it.add_sidecars(system, count) for system in SYSTEMS))
            for registry in REGISTRIES:
                what = f"{count} sidecar{'s' if count > 1 else ''}{registry.name}"
                cell = await _cell(it, registry, registry.rounds(swaps), numbers)
                if noise := machine.calibrate().verdict:  # the sidecars have no load now
                    noisy.append(f"{what} ({noise})")
                within = _WITHIN if count == 1 and not registry.is_slow else None
                lines = figures(what, cell[OURS], cell[THEIRS], within=within)
                if not registry.is_slow:
                    lines += _memory(what, await asyncio.to_thread(it.memory))
                log.info("%s", show(lines))
                found += lines
    if noisy:
        notes.append(f"**Too noisy to tell**, measured after the cell: {'; '.join(noisy)}.")
    return Result(found, notes=notes)


def _conditions(swaps: int) -> str:
    rounds = ", ".join(str(one.rounds(swaps)) for one in REGISTRIES)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"istiod and agents {releases.ISTIO.version}, Envoy {pypi.ENVOY_VERSIONS[0]}; a module of {SIZE >> 20} MiB; {rounds} swaps of each system for the "
        f"three registries; at most {_REQUESTS_A_SECOND} requests/s to the sidecars of a system together, and none to the other's meanwhile. Sidecars "
        f"without the module after {PATIENCE:g} s are left out of the times. Load average at the start: {load}."
    )


async def _cell(
    it: WasmMesh, registry: Registry, rounds: int, numbers: "itertools.count[int]"
) -> dict[str, list[Swap]]:
    found: dict[str, list[Swap]] = {system: [] for system in SYSTEMS}
    it.link.round_trip, it.link.rate = registry.round_trip, registry.rate
    chosen = list(itertools.islice(numbers, rounds + 1))
    for number in chosen:
        content = await asyncio.to_thread(wasmmesh.module, number, size=SIZE)
        await it.push(f"v{number}", content)
    for system in SYSTEMS:
        await it.apply(system, f"v{chosen[0]}")
        for one in it.sidecars[system]:
            try:
                await Load(one.host, header=HEADER).wait_for(value(chosen[0]), timeout=PATIENCE)
            except TimeoutError as error:
                raise RuntimeError(f"{error}\n{await one.envoy.process.tail()}") from error
    host = it.link.host if registry.is_slow else ""
    for turn, (old, new) in enumerate(itertools.pairwise(chosen)):
        for system in SYSTEMS if turn % 2 else reversed(SYSTEMS):
            found[system].append(await _swap(it, system, old, new, host))
    return found


async def _swap(it: WasmMesh, system: str, old: int, new: int, host: str) -> Swap:
    sidecars = it.sidecars[system]
    position = await asyncio.to_thread(it.log_position)
    async with AsyncExitStack() as stack:
        reports = [
            await stack.enter_async_context(_load(one, len(sidecars), old, new).steady())
            for one in sidecars
        ]
        await asyncio.sleep(_BEFORE)
        begun = time.monotonic()
        await it.apply(system, f"v{new}", host=host)
        await _all_have(reports, value(new), begun + PATIENCE)
        await asyncio.sleep(_AFTER)
    took = [report.first[value(new)] - begun for report in reports if value(new) in report.first]
    return Swap(
        took=took,
        missing=len(sidecars) - len(took),
        previous=max(report.last.get(value(old), begun) - begun for report in reports),
        requests=sum(report.total for report in reports),
        failed=sum(report.failed for report in reports),
        registry=await asyncio.to_thread(it.usage, system, position),
    )


def _load(sidecar: StagedSidecar, count: int, old: int, new: int) -> Load:
    pause = max(0.01, 2 * count / _REQUESTS_A_SECOND)
    return Load(sidecar.host, header=HEADER, values={value(old), value(new)}, pause=pause)


async def _all_have(reports: list[LoadReport], wanted: str, deadline: float) -> None:
    while time.monotonic() < deadline and not all(wanted in one.first for one in reports):
        await asyncio.sleep(0.01)


def _memory(what: str, found: Mapping[str, Sequence[float]]) -> list[Figure]:
    return [
        Figure(f"{what}: memory of an agent", "MiB", found[f"agents {OURS}"], THEIRS, found[f"agents {THEIRS}"]),
        Figure(f"{what}: memory of an Envoy", "MiB", found[f"Envoys {OURS}"], THEIRS, found[f"Envoys {THEIRS}"]),
        Figure(f"{what}: memory of istiod, for both", "MiB", found["istiod"]),
        Figure(f"{what}: memory of wasmer", "MiB", found["wasmer"]),
    ]  # fmt: skip
