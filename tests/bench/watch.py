"""Watching Pods: the events per second and the longest hold of the event loop, compared with kubernetes_asyncio's Watch.

A replaying server on the other processor sends Pods of 12 KB that appear and change: as fast as they are read, and at 40
000 a second. It measures the controller's own informer with the matcher over it.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from autowasm.performance.eventloop import BOUNDS
from tests.bench import measure
from tests.bench.plan import Plan
from tests.bench.table import Chart, Figure, Result, at_least, at_most

_PODS = 2_000
_RATE = 40_000


async def run(plan: Plan) -> Result:
    """Rate, processor time per event, longest iteration."""
    events = plan.pick(200_000, 6_000)
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(plan.repeats):
        for who, count in (("ours", events), ("dict", events // 10), ("model", events // 50)):
            found.setdefault(who, []).append(await _follow(plan, who, count, rate=0))
        found.setdefault("paced", []).append(
            await _follow(plan, "ours", plan.pick(4 * _RATE, events), rate=_RATE)
        )
    ours, paced = found["ours"], found["paced"]
    figures = [
        Figure(
            "Pod events, to dicts", "1/s", _rates(ours), "Watch", _rates(found["dict"]), at_least(_RATE)
        ),
        Figure("Pod events, to models", "1/s", _rates(ours), "Watch", _rates(found["model"])),
        Figure("processor for an event", "µs", _cpu(ours), "Watch", _cpu(found["dict"])),
        Figure("longest turn, as fast as it goes", "ms", [one["longest"] for one in ours], budget=at_most(3)),
        Figure("at 40 000/s: events", "1/s", _rates(paced), budget=at_least(0.95 * _RATE)),
        Figure("at 40 000/s: longest turn", "ms", [one["longest"] for one in paced], budget=at_most(3)),
    ]  # fmt: skip
    labels = [*(f"≤ {1000 * bound:g}" for bound in BOUNDS), "more"]
    shares = [_shares(one[-1]["iterations"]) for one in (ours, paced)]
    series = dict(zip(("as fast as it goes", "at 40 000/s"), shares, strict=True))
    chart = Chart(
        "watch",
        "How long the loop was held while watching Pods",
        "% of turns",
        labels,
        series,
        label_unit="ms",
    )
    return Result(figures, [chart])


def _rates(runs: list[dict[str, Any]]) -> list[float]:
    return [one["heard"] / one["seconds"] for one in runs]


def _cpu(runs: list[dict[str, Any]]) -> list[float]:
    return [1e6 * one["cpu"] / one["heard"] for one in runs]


def _shares(counts: list[int]) -> list[float]:
    return [100 * one / max(sum(counts), 1) for one in counts]


async def _follow(plan: Plan, who: str, events: int, *, rate: int) -> dict[str, Any]:
    pods = min(_PODS, events)
    async with _replaying(pods=pods, events=events, rate=rate) as port:
        kubeconfig = await asyncio.to_thread(_kubeconfig, plan.directory, port)
        command: list[str | Path] = [
            *measure.pinned(measure.SERVER_CPU),
            sys.executable,
            "-m",
            "tests.bench.informers",
        ]
        words: list[str | Path] = [
            who,
            "--kubeconfig",
            kubeconfig,
            "--pods",
            str(pods),
            "--events",
            str(events),
        ]
        return await measure.json_of([*command, *words])


@asynccontextmanager
async def _replaying(*, pods: int, events: int, rate: int) -> AsyncIterator[int]:
    command = [*measure.pinned(measure.CLIENT_CPU), sys.executable, "-m", "tests.bench.replay"]
    words = ["--pods", str(pods), "--events", str(events), "--rate", str(rate)]
    process = await asyncio.create_subprocess_exec(
        *map(str, [*command, *words]), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            yield_port = int(await process.stdout.readline())
        yield yield_port
    finally:
        process.kill()
        await process.wait()


def _kubeconfig(directory: Path, port: int) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    target = directory / "kubeconfig"
    target.write_text(yaml.safe_dump(document))
    return target
