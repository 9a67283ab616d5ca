"""AutoWasms of one image, from the start of the process to all `Synced`, compared with a controller-runtime program that makes the
same writes and nothing else (`tests/assets/tools/crpeer`) and a kopf operator that does (`kopfpeer.py`); after a restart; and from
"AutoWasm accepted" to "EnvoyFilter accepted". Growth must be linear, and is drawn.

All run on the same API server, in turns, with the same number of workers if they have any; the times of ours are from the
API server's audit log. Its figures include the start of the Python process, those of the rivals exclude their start.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from tests.bench import measure
from tests.bench.plan import Plan
from tests.bench.table import Chart, Figure, Result, at_most, ratio_at_most
from tests.parts import goruntime, provision, wat, wire
from tests.parts.installation import (
    Document,
    Installation,
    autowasms,
    envoyfilters,
    installed_without_istiod,
)
from tests.parts.kubeapi import ApiError
from tests.parts.kubernetes import kubernetes

WORKERS = 8
NAMESPACE = "default"


@dataclass(slots=True)
class _Runs:
    ours: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    crpeer: list[float] = field(default_factory=list)
    kopf: list[float] = field(default_factory=list)


async def run(plan: Plan) -> Result:
    """1 000 and 5 000 AutoWasms, and some sizes in between for the picture."""
    main, largest = plan.pick((1000, 5000), (40, 80))
    sizes = plan.pick((500, 1000, 2000, 5000), (40, 80))
    async with installation_for(plan.directory) as installation:
        image = await installation.push("v1", wat.header_filter("x"))
        accepted = await _accepted(installation, image, plan.pick(100, 20))
        runs = {size: _Runs() for size in sizes}
        for size in sizes:
            repeats = {main: plan.repeats, largest: min(plan.repeats, 2)}  # a minute each
            for _ in range(repeats.get(size, 1)):
                await _measure(installation, image, size, runs[size], rivals=size == main)
    figures: list[Figure] = []
    for size in (main, largest):
        figures += _figures(size, runs[size])
    figures += [
        Figure("accepted to accepted, p50", "ms", [accepted[0]], budget=at_most(100)),
        Figure("accepted to accepted, p95", "ms", [accepted[1]]),
    ]
    return Result(figures, [_growth(sizes, runs)])


async def _measure(
    installation: Installation, image: str, size: int, runs: _Runs, *, rivals: bool
) -> None:
    if rivals:
        crpeer: list[str | Path] = [await asyncio.to_thread(provision.crpeer), "-config"]
        kopf: list[str | Path] = [sys.executable, "-m", "tests.bench.kopfpeer", "--kubeconfig"]
        workers = ["-workers", str(WORKERS)]
        runs.crpeer.append(await _rival(installation, image, size, crpeer, workers))
        runs.kopf.append(await _rival(installation, image, size, kopf, []))
    seconds, used, again = await _ours(installation, image, size)
    runs.ours.append(seconds)
    runs.again.append(again)
    runs.cpu.append(1000 * used / size)


def _figures(size: int, runs: _Runs) -> list[Figure]:
    what = f"{size} AutoWasms, start to Synced"
    found = [
        Figure(f"{what}, after a restart", "s", runs.again),
        Figure(f"{what}, processor for each, all in", "ms", runs.cpu),
    ]
    if not runs.crpeer:
        return [Figure(what, "s", runs.ours), *found]
    return [
        Figure(what, "s", runs.ours, "crpeer", runs.crpeer, ratio_at_most(1.2)),
        Figure(what, "s", runs.ours, "kopf", runs.kopf, ratio_at_most(1)),
        *found,
    ]


def _growth(sizes: Sequence[int], runs: dict[int, _Runs]) -> Chart:
    ours = [median(runs[size].ours) for size in sizes]
    again = [median(runs[size].again) for size in sizes]
    return Chart(
        "reconcile",
        "AutoWasms of one image: start to all Synced",
        "seconds",
        [str(size) for size in sizes],
        {"from nothing": ours, "after a restart": again},
        kind="line",
        label_unit="AutoWasms",
    )


@asynccontextmanager
async def installation_for(
    directory: Path, *, arguments: Sequence[str] = ()
) -> AsyncIterator[Installation]:
    """An API server with the shipped CRD and RBAC, a registry, one `wasmer controller`; other rows use it, too.

    The controller is a program of its own: a forked one shares memory with its parent, and skips the start of Python.
    """
    flags = (f"--workers={WORKERS}", "--peers-service=", "--log-format=json", *arguments)
    async with (
        kubernetes(directory / "kubernetes", go=goruntime.DEFAULT) as cluster,
        installed_without_istiod(cluster, directory, arguments=flags, fork=False) as found,
    ):
        yield found


async def fill(installation: Installation, image: str, size: int) -> None:
    """Create this many AutoWasms of this image."""
    documents = (installation.autowasm(image, name=f"f{number}") for number in range(size))
    await installation.cluster.each(("POST", autowasms(NAMESPACE), one) for one in documents)


async def _empty(installation: Installation) -> None:
    request = installation.cluster.request
    async with asyncio.timeout(600):
        for path in (autowasms(NAMESPACE), envoyfilters(NAMESPACE)):
            while (await request("GET", f"{path}?limit=1"))["items"]:
                # The API server ends a request after a minute, before it has deleted all of 5 000.
                with suppress(OSError, ApiError):
                    await request("DELETE", path, timeout=90)


async def _rival(
    installation: Installation,
    image: str,
    size: int,
    command: Sequence[str | Path],
    more: Sequence[str],
) -> float:
    await installation.wasmer.process.stop()
    await _empty(installation)
    await fill(installation, image, size)
    words = [*command, installation.cluster.kubeconfig, "-n", str(size), *more]
    found = await measure.json_of(words, timeout=600)
    seconds: float = found["seconds"]
    return seconds


async def _ours(installation: Installation, image: str, size: int) -> tuple[float, float, float]:
    """Seconds to Synced, CPU seconds, seconds after a restart."""
    wasmer = installation.wasmer
    await wasmer.process.stop()
    await _empty(installation)
    await fill(installation, image, size)
    since, begun = await installation.audit.position(), time.time()
    await wasmer.start(timeout=120)
    await synced(installation, size)
    writes = await installation.writes(since)
    took = max(one.answered for one in writes if one.resource == "autowasms/status") - begun
    used = measure.cpu_seconds(wasmer.process.pid)
    await wasmer.process.stop()
    begun = time.time()
    await wasmer.start(timeout=120)
    await synced(installation, size)
    return took, used, time.time() - begun


async def synced(installation: Installation, size: int) -> None:
    """Wait until this many are Synced."""
    wanted = f'autowasm_autowasms{{phase="Synced"}} {float(size)}'
    async with asyncio.timeout(300):
        while True:
            answer = await wire.get(f"http://{installation.wasmer.admin}/metrics")
            if wanted in answer.body.decode():
                return
            await asyncio.sleep(0.5)  # a scrape costs wasmer some 10 ms


async def _accepted(installation: Installation, image: str, count: int) -> tuple[float, float]:
    """p50 and p95 in milliseconds, with the blob stored; one object at a time."""
    await _empty(installation)
    if not installation.wasmer.process.alive:
        await installation.wasmer.start()
    audit = installation.audit
    since = await audit.position()
    names = [f"one-{number}" for number in range(count)]
    for name in names:
        document: Document = installation.autowasm(image, name=name)
        await installation.cluster.request("POST", autowasms(NAMESPACE), body=document)
        await installation.wait_envoyfilter(name=name)
    created = {
        one.name: one.answered
        for one in await audit.entries(user="admin", since=since)
        if one.resource == "autowasms" and one.verb == "create"
    }
    written = {
        one.name: one.answered
        for one in await installation.writes(since)
        if one.resource == "envoyfilters" and one.verb == "create"
    }
    times = [1000 * (written[name] - created[name]) for name in names]
    cuts = quantiles(times, n=20)
    return cuts[9], cuts[18]
