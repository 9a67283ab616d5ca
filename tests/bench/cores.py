"""Serving blobs on all processors: wasmer's one process, nginx with a worker for each processor, and Go's file server.

The load generator shares the processors with the server, so on a machine with two processors the figures depend on both programs; only the
ratios count. All serve the same files, in turns.
"""

from tests.bench import load
from tests.bench.plan import Plan
from tests.bench.serve import KIB, MIB
from tests.bench.servers import serving
from tests.bench.table import Figure, Result, at_most

SIZES = {64 * KIB: "64 KiB", 5 * MIB: "5 MiB"}
CONNECTIONS = (64, 512)
_SECONDS = 1.5


async def run(plan: Plan) -> Result:
    """MB/s."""
    connections = plan.pick(CONNECTIONS, (64,))
    seconds = plan.pick(_SECONDS, 0.3)
    cells: dict[tuple[int, int], dict[str, list[load.Load]]] = {}
    async with serving(plan.directory, list(SIZES), cpu=None) as servers:
        for number in range(plan.repeats):
            for size in SIZES:
                for count in connections:
                    cell = cells.setdefault((size, count), {})
                    for server in servers.all_in_turn(number):
                        found = await load.keep_alive(
                            server, servers.urls[size], connections=count, seconds=seconds
                        )
                        cell.setdefault(server.name, []).append(found)
        rivals = (servers.nginx.name, servers.go.name)
    figures = [
        Figure(
            f"{SIZES[size]} × {count}",
            "MB/s",
            [one.megabytes for one in cell[servers.ours.name]],
            rival,
            [one.megabytes for one in cell[rival]],
        )
        for (size, count), cell in cells.items()
        for rival in rivals
    ]
    lost = sum(one.lost for cell in cells.values() for runs in cell.values() for one in runs)
    figures.append(Figure("requests that failed, all servers", "", [lost], budget=at_most(0)))
    return Result(figures)
