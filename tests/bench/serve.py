"""Serving blobs, compared with nginx and Go's file server: four sizes over up to 2 000 connections, from the page cache and from the disk.

All serve the same files, in turns, on a processor of their own; the load generator has the other.
"""

import asyncio

from tests.bench import load, measure
from tests.bench.plan import Plan
from tests.bench.servers import Server, Serving, serving
from tests.bench.table import Budget, Chart, Figure, Result, at_most, ratio_at_least, ratio_at_most

KIB, MIB = 1 << 10, 1 << 20
SIZES = {64 * KIB: "64 KiB", MIB: "1 MiB", 5 * MIB: "5 MiB", 20 * MIB: "20 MiB"}
CONNECTIONS = (1, 64, 512, 2000)

_GO = "http.FileServer"
_SECONDS = 1.5
_BYTES_A_SECOND = 3.5e9
"""More than loopback transfers: a cell whose round takes longer than `_SECONDS` at this rate runs exactly one round."""


async def run(plan: Plan) -> Result:
    """All cells."""
    connections = plan.pick(CONNECTIONS, (1, 64))
    async with serving(plan.directory, list(SIZES)) as servers:
        cells: dict[tuple[int, int], dict[str, list[load.Load]]] = {}
        for number in range(plan.repeats):
            for size in SIZES:
                for count in connections:
                    cell = cells.setdefault((size, count), {})
                    for server in servers.all_in_turn(number):
                        found = await _cell(plan, servers, server, size, count)
                        cell.setdefault(server.name, []).append(found)
        cold = [
            await _cold(plan, servers, size, count)
            for size in (MIB, 20 * MIB)
            for count in plan.pick((1, 64), (1,))
        ]
    figures = []
    for (size, count), cell in cells.items():
        figures += _figures(SIZES[size], size, count, cell)
    lost = sum(one.lost for cell in cells.values() for runs in cell.values() for one in runs)
    lost_figure = Figure(
        "requests that failed, all servers, all cells", "", [lost], budget=at_most(0)
    )
    return Result([*figures, *cold, lost_figure], _charts(cells, connections))


async def _cell(plan: Plan, servers: Serving, server: Server, size: int, count: int) -> load.Load:
    url = servers.urls[size]
    if size * count / _BYTES_A_SECOND > _SECONDS:
        return await load.keep_alive(server, url, connections=count, requests=count)
    seconds = plan.pick(_SECONDS, 0.3)
    return await load.keep_alive(server, url, connections=count, seconds=seconds)


def _figures(name: str, size: int, count: int, cell: dict[str, list[load.Load]]) -> list[Figure]:
    ours, theirs, gos = cell["wasmer"], cell["nginx"], cell[_GO]
    what = f"{name} × {count}"
    figures = [
        Figure(
            what,
            "MB/s",
            [one.megabytes for one in ours],
            "nginx",
            [one.megabytes for one in theirs],
            _budget(size, count),
        )
    ]
    if count in (64, CONNECTIONS[-1]):
        figures.append(
            Figure(
                what,
                "MB/s",
                [one.megabytes for one in ours],
                _GO,
                [one.megabytes for one in gos],
                ratio_at_least(1) if count == 64 else None,
            )
        )
    if count == 64 and size >= 5 * MIB:
        figures.append(
            Figure(
                f"{what}, processor",
                "s/GB",
                [_cpu(one) for one in ours],
                "nginx",
                [_cpu(one) for one in theirs],
                ratio_at_most(1.10),
            )
        )
        figures.append(
            Figure(
                f"{what}, processor",
                "s/GB",
                [_cpu(one) for one in ours],
                _GO,
                [_cpu(one) for one in gos],
            )
        )
    if count == CONNECTIONS[-1]:
        peaks = [one.peak for one in ours]
        figures.append(
            Figure(f"{what}, memory", "MiB", peaks, "nginx", [one.peak for one in theirs])
        )
    return figures


def _budget(size: int, count: int) -> Budget | None:
    if size >= 5 * MIB:
        return ratio_at_least(0.95)
    if count == 64:
        return ratio_at_least(0.90 if size == MIB else 0.40)
    return None


def _cpu(one: load.Load) -> float:
    return one.cpu / max(one.megabytes * one.seconds / 1000, 1e-9)


async def _cold(plan: Plan, both: Serving, size: int, count: int) -> Figure:
    """One round, of a file that is not in the page cache."""
    seconds: dict[str, list[float]] = {"wasmer": [], "nginx": []}
    for number in range(plan.repeats):
        for server in both.in_turn(number):
            await asyncio.to_thread(measure.drop_from_page_cache, both.files[size])
            found = await load.keep_alive(
                server, both.urls[size], connections=count, requests=count
            )
            seconds[server.name].append(1000 * found.seconds)
    name = f"{SIZES[size]} × {count}, first round from the disk"
    return Figure(name, "ms", seconds["wasmer"], "nginx", seconds["nginx"])


def _charts(
    cells: dict[tuple[int, int], dict[str, list[load.Load]]], connections: tuple[int, ...]
) -> list[Chart]:
    def ratio(size: int, count: int) -> float | None:
        cell = cells[size, count]
        figure = Figure(
            "", "", [one.megabytes for one in cell["wasmer"]],
            "", [one.megabytes for one in cell["nginx"]],
        )  # fmt: skip
        return figure.ratio

    labels = [str(count) for count in connections]
    series = {name: [ratio(size, count) for count in connections] for size, name in SIZES.items()}
    return [
        Chart(
            "serve",
            "Throughput of serving, nginx = 1",
            "times nginx",
            labels,
            series,
            label_unit="connections",
            mark=("nginx", 1.0),
        )
    ]
