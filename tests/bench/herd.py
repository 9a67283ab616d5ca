"""A herd, compared with nginx: thousands of sidecars that receive a new module's URL at once, each with a connection of its own.

If the machine allows it, measured again with both in memory cgroups of the size that the chart's limit leaves to wasmer.
"""

from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import capacity, cgroup, load
from tests.bench.plan import Plan
from tests.bench.servers import Serving, serving
from tests.bench.table import Chart, Figure, Result, at_most, ratio_at_most

SIZE = 2 << 20


async def run(plan: Plan) -> Result:
    """5 000 clients of 2 MiB: the total time, the time of the slowest connect, the memory, and the longest hold of the event loop."""
    clients = plan.pick((500, 1000, 2000, 5000), (50, 200))
    times: dict[int, tuple[list[float], list[float]]] = {count: ([], []) for count in clients}
    figures: list[Figure] = []
    async with serving(plan.directory / "free", [SIZE]) as both:
        found = await _herds(plan, both, clients[-1])
        figures += found.figures(f"{clients[-1]} × 2 MiB", bounded=True)
        times[clients[-1]] = (found.ours, found.theirs)
        for count in clients[:-1]:
            smaller = await _herds(plan, both, count)
            times[count] = (smaller.ours, smaller.theirs)
    figures.append(_simulated(times))
    notes = await _in_cgroup(plan, clients[-1], figures)
    ours, theirs = (
        [sorted(runs[side])[len(runs[side]) // 2] for runs in times.values()] for side in (0, 1)
    )
    chart = Chart(
        "herd",
        "A herd: time until the last client has 2 MiB",
        "seconds",
        [str(count) for count in clients],
        {"wasmer": ours, "nginx": theirs},
        kind="line",
        label_unit="clients, each with a new connection",
        dashed=["nginx"],
    )
    return Result(figures, [chart], notes)


def _simulated(times: dict[int, tuple[list[float], list[float]]]) -> Figure:
    """The simulation's result for the largest herd; its only measured input is the rate of the smallest one."""
    small, large = min(times), max(times)
    rate = small * SIZE / median(times[small][0])
    plan = capacity.Rollout(
        pods=large, module=SIZE, replicas=1, chains=1, network=rate, request_cpu=0.0, byte_cpu=0.0, timeout=180
    )  # fmt: skip
    ours = times[large][0]
    seconds = [capacity.simulate(plan).seconds] * len(ours)
    return Figure(f"{large} × 2 MiB beside what {small} foretell", "s", ours, "simulated", seconds)


class _Herds:
    """The results of repeated herds of one size."""

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.connect: list[float] = []
        self.their_connect: list[float] = []
        self.peak: list[float] = []
        self.lost: list[float] = []
        self.their_lost: list[float] = []
        self.held: list[float] = []

    def figures(self, what: str, *, bounded: bool) -> list[Figure]:
        def kept(limit: float) -> dict[str, Any]:
            return {"budget": at_most(limit)} if bounded else {}

        time_budget: dict[str, Any] = {"budget": ratio_at_most(1.35)} if bounded else {}
        return [
            Figure(what, "s", self.ours, "nginx", self.theirs, **time_budget),
            Figure(f"{what}, clients without it", "", self.lost, "nginx", self.their_lost, **kept(0)),
            Figure(f"{what}, slowest connect", "ms", self.connect, "nginx", self.their_connect, **kept(250)),
            Figure(f"{what}, memory at most", "MiB", self.peak, **kept(128)),
            Figure(f"{what}, longest turn of the loop", "ms", self.held, **kept(5)),
        ]  # fmt: skip


async def _herds(plan: Plan, both: Serving, clients: int) -> _Herds:
    herds = _Herds()
    url = both.urls[SIZE]
    for number in range(plan.repeats):
        for server in both.in_turn(number):
            if server is both.nginx:
                found = await load.herd(server, url, clients=clients)
                herds.theirs.append(found.seconds)
                herds.their_connect.append(found.slowest_connect)
                herds.their_lost.append(found.lost)
                continue
            await server.longest_iteration()  # from here on
            found = await load.herd(server, url, clients=clients)
            herds.held.append(await server.longest_iteration())
            herds.ours.append(found.seconds)
            herds.connect.append(found.slowest_connect)
            herds.peak.append(found.peak)
            herds.lost.append(found.lost)
    return herds


async def _in_cgroup(plan: Plan, clients: int, figures: list[Figure]) -> list[str]:
    limit = cgroup.chart_limit()
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(cgroup.memory_group("bench", limit=limit))
        if group is None:
            return [
                "Not measured in a memory cgroup: this machine lets us make none (root, or a delegated cgroup, is needed)."
            ]
        directory: Path = plan.directory / "limited"
        async with serving(directory, [SIZE], cgroup=group.directory) as both:
            found = await _herds(plan, both, clients)
            killed, peak = group.killed, group.peak
        mib = limit >> 20
        what = f"{clients} × 2 MiB, both in one cgroup of {mib} MiB"
        figures += found.figures(what, bounded=False)[:3]
        figures.append(Figure(f"{what}: its peak", "MiB", [peak]))
        figures.append(Figure(f"{what}: killed", "", [killed], budget=at_most(0)))
    return []
