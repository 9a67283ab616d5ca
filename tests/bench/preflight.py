"""The cost of starting modules before they are published: the child processes, wasmer meanwhile, and a change of a configuration.

The rival is the same wasmer with `--preflight off`. Processor seconds of a child are the kernel's count for that process
alone. Invariant: all measured runs gave the verdict `Starts`; any other verdict is an error.
"""

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from autowasm.preflight.processes import Result as ChildResult
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.verdict import Outcome, Verdict
from autowasm.telemetry.metrics import Metrics
from tests.bench import measure
from tests.bench.plan import Plan
from tests.bench.reconcile import NAMESPACE, installation_for
from tests.bench.servers import Server
from tests.bench.table import Figure, Result, at_most
from tests.fakes import preflights
from tests.fakes.preflights import Judge
from tests.hostile import looptime
from tests.parts import filters, wire
from tests.parts.installation import Installation, autowasms
from tests.parts.mesh import Mesh, composed

MODES = ("enforce", "off")
FILTER = "refuse-config"
"""A filter that accepts any configuration without the word `refuse`, and puts it into the header `x-configuration`."""
TOOLCHAINS: Mapping[str, tuple[str, float]] = {"c": ("C", 0.5), "go": ("Go", 4.0)}
"""By toolchain: its name, and the budget of the first run, in processor seconds."""
LABELS = {"app": "details"}
_PATIENCE = 60.0


async def run(plan: Plan) -> Result:
    """Milliseconds, processor seconds, MiB."""
    figures = await _children(plan)
    figures += await _beside(plan)
    figures += await _changes(plan)
    return Result(figures)


@dataclass(slots=True)
class _Runs:
    """The results of one module, one value for each repeat."""

    size: int
    processor: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    turn: list[float] = field(default_factory=list)


class _Children:
    """The children of a `Judge`: their processor seconds and their memory."""

    def __init__(self, judge: Judge) -> None:
        self.processor = 0.0
        self.memory = 0.0
        self._execute = judge.server.execute
        judge.server.execute = self._counted  # type: ignore[method-assign]

    async def _counted(self, *arguments: Any, **more: Any) -> ChildResult:
        result = await self._execute(*arguments, **more)
        self.processor += result.ended.cpu
        self.memory = max(self.memory, result.ended.memory / (1 << 20))
        return result


async def _children(plan: Plan) -> list[Figure]:
    figures: list[Figure] = []
    for toolchain, (language, most) in TOOLCHAINS.items():
        file = await asyncio.to_thread(filters.build, FILTER, toolchain=toolchain)
        module = await asyncio.to_thread(file.read_bytes)
        runs = _Runs(len(module))
        for turn in range(plan.repeats):
            directory = plan.directory / f"children-{toolchain}-{turn}"
            directory.mkdir()
            async with preflights.running(directory, Metrics()) as judge:
                await _judge_often(judge, module, runs, plan.pick(20, 5))
        what = f"module of {_size(runs.size)} from {language}"
        figures += [
            Figure(f"first run of a {what}: processor of the children", "s", runs.processor, budget=at_most(most)),
            Figure(f"first run of a {what}", "s", runs.seconds),
            Figure(f"first run of a {what}: memory of the larger child", "MiB", runs.memory),
            Figure(f"changed configuration of a known {what}", "ms", runs.again, budget=at_most(50)),
            Figure(f"judging a known {what}: longest turn of the loop, processor time", "ms", runs.turn, budget=at_most(5)),
        ]  # fmt: skip
    return figures


async def _judge_often(judge: Judge, module: bytes, runs: _Runs, count: int) -> None:
    path, sha256 = judge.store(module)
    numbers = itertools.count()

    async def once() -> float:
        """Judge another configuration; the seconds."""
        plugin = Plugin(configuration=f"number {next(numbers)}".encode(), root_id=FILTER)
        begun = time.perf_counter()
        found = await judge.preflight.judge(
            namespace="bench", module=path, sha256=sha256, plugin=plugin
        )
        took = time.perf_counter() - begun
        if not isinstance(found, Verdict) or found.outcome is not Outcome.STARTS:
            raise RuntimeError(f"not measured: {found}")
        return took

    await _fork_server_runs(judge)
    children = _Children(judge)
    runs.seconds.append(await once())
    runs.processor.append(children.processor)
    runs.memory.append(children.memory)
    runs.again.append(1000 * median([await once() for _ in range(count)]))
    runs.turn.append(1000 * await looptime.longest_iteration(once))


async def _fork_server_runs(judge: Judge) -> None:
    """Wait until the fork server runs, as in a wasmer that has been running for a second."""
    other, sha256 = judge.store(b"no module")
    await judge.preflight.judge(namespace="bench", module=other, sha256=sha256, plugin=Plugin())


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"


async def _require_started(installation: Installation, mode: str) -> None:
    """Raises RuntimeError unless wasmer started all modules, or none with `off`."""
    items = (await installation.cluster.request("GET", autowasms(NAMESPACE)))["items"]
    wanted = {"enforce": ["True"], "off": []}[mode]
    for item in items:
        conditions = item["status"]["conditions"]
        found = [one["status"] for one in conditions if one["type"] == "Starts"]
        if found != wanted:
            raise RuntimeError(f"not measured: with --preflight={mode}, Starts is {found}")


@dataclass(slots=True)
class _Beside:
    """The controller while configurations change, one value for each repeat."""

    growth: list[float] = field(default_factory=list)
    turn: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


async def _beside(plan: Plan) -> list[Figure]:
    """Memory and loop of a controller while all AutoWasms get new configurations."""
    count = plan.pick(50, 4)
    found = {mode: _Beside() for mode in MODES}
    file = await asyncio.to_thread(filters.build, FILTER)
    module = await asyncio.to_thread(file.read_bytes)
    for turn in range(plan.repeats):
        for mode in MODES:
            directory = plan.directory / f"beside-{mode}-{turn}"
            arguments = [f"--preflight={mode}"]
            async with installation_for(directory, arguments=arguments) as installation:
                await _measure_beside(installation, module, found[mode], count)
                await _require_started(installation, mode)
    what = f"{count} AutoWasms with new configurations"
    ours, off = found["enforce"], found["off"]
    return [
        Figure(f"{what}, until all are published", "s", ours.seconds, "off", off.seconds),
        Figure(f"{what}: memory that the controller takes more", "MiB", ours.growth, "off", off.growth, at_most(16)),
        Figure(f"{what}: longest turn of the loop, by the clock", "ms", ours.turn, "off", off.turn),
    ]  # fmt: skip


async def _measure_beside(
    installation: Installation, module: bytes, found: _Beside, count: int
) -> None:
    process = installation.wasmer.process
    image = await installation.push("v1", module)
    make = (
        installation.autowasm(image, name=f"f{number}", rootID=FILTER, pluginConfig="first")
        for number in range(count)
    )
    await installation.cluster.each(("POST", autowasms(NAMESPACE), one) for one in make)
    await _all_ready(installation, count)
    await _change_all(installation, count, "second")  # all code has run once
    before = measure.memory(process.pid).resident
    measure.forget_peak(process.pid)
    port = int(installation.wasmer.host.rpartition(":")[2])
    server = Server("wasmer", process.pid, port, process.log, installation.wasmer.admin)
    await server.longest_iteration()  # from here on
    begun = time.perf_counter()
    await _change_all(installation, count, "third")
    found.seconds.append(time.perf_counter() - begun)
    found.turn.append(await server.longest_iteration())
    found.growth.append(measure.memory(process.pid).peak - before)


async def _change_all(installation: Installation, count: int, word: str) -> None:
    def patch(number: int) -> tuple[str, str, dict[str, Any]]:
        body = {"spec": {"filter": {"pluginConfig": f"{word} {number}"}}}
        return "PATCH", autowasms(NAMESPACE, f"f{number}"), body

    await installation.cluster.each(patch(number) for number in range(count))
    await _all_ready(installation, count)


async def _all_ready(installation: Installation, count: int) -> None:
    """Wait until this many are Ready in their newest generation."""
    async with asyncio.timeout(_PATIENCE * 5):
        while True:
            items = (await installation.cluster.request("GET", autowasms(NAMESPACE)))["items"]
            if sum(map(_is_ready, items)) == count:
                return
            await asyncio.sleep(0.1)


def _is_ready(item: Mapping[str, Any]) -> bool:
    return any(
        (one["type"], one["status"]) == ("Ready", "True")
        and one.get("observedGeneration") == item["metadata"]["generation"]
        for one in item.get("status", {}).get("conditions", ())
    )


async def _changes(plan: Plan) -> list[Figure]:
    """From the API server's acceptance of a configuration to the header of an answer, through wasmer, istiod and a sidecar."""
    count = plan.pick(10, 3)
    known: dict[str, list[float]] = {mode: [] for mode in MODES}
    new: dict[str, list[float]] = {mode: [] for mode in MODES}
    file = await asyncio.to_thread(filters.build, FILTER)
    module = await asyncio.to_thread(file.read_bytes)
    for turn in range(plan.repeats):
        for mode in MODES:
            directory = plan.directory / f"changes-{mode}-{turn}"
            async with composed(directory, arguments=[f"--preflight={mode}"]) as mesh:
                sidecar = await mesh.add_sidecar("details-v1", LABELS)
                image = await mesh.push("v1", module)
                fields: dict[str, Any] = {"rootID": FILTER, "applyPorts": [sidecar.port]}
                await mesh.apply(mesh.autowasm(image, **fields, pluginConfig="first"))
                await _answered(sidecar.host, "first")
                words = [f"new {number}" for number in range(count)]
                for found in (new, known):
                    took = [await _change(mesh, sidecar.host, word) for word in words]
                    found[mode].append(median(took))
                await _require_started(mesh, mode)
    what = "from an applied configuration to the header of an answer"
    return [
        Figure(f"{what}, judged before", "ms", known["enforce"], "off", known["off"], at_most(300)),
        Figure(f"{what}, new", "ms", new["enforce"], "off", new["off"]),
    ]


async def _change(mesh: Mesh, host: str, configuration: str) -> float:
    """Milliseconds."""
    body = {"spec": {"filter": {"pluginConfig": configuration}}}
    begun = time.perf_counter()
    await mesh.cluster.request("PATCH", autowasms(NAMESPACE, "test"), body=body)
    await _answered(host, configuration)
    return 1000 * (time.perf_counter() - begun)


async def _answered(host: str, configuration: str) -> None:
    """Wait for an answer from the filter with this configuration."""
    async with asyncio.timeout(_PATIENCE):
        while await _configuration(host) != configuration:
            await asyncio.sleep(0.002)


async def _configuration(host: str) -> str | None:
    try:
        answer = await wire.get(f"http://{host}/")
    except OSError:  # an old filter chain closes its connections
        return None
    return answer.headers.get("x-configuration")
