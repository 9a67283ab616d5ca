"""1 000 AutoWasms of one image, from the start of the process to all `Synced`, beside a controller-runtime program that makes the
same writes and nothing else (`tests/assets/crpeer`); after a restart; and from "AutoWasm accepted" to "EnvoyFilter accepted".

Both are on the same API server, with the same number of workers, in turns; the API server's audit log has the times.
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles

from tests.bench.table import Figure
from tests.parts import provision, wat, wire
from tests.parts.installation import (
    Document,
    Installation,
    autowasms,
    envoyfilters,
    installed_without_istiod,
)
from tests.parts.kubernetes import kubernetes

WORKERS = 8
NAMESPACE = "default"


async def run(*, size: int = 1000, repeats: int = 3) -> list[Figure]:
    """All figures of this row."""
    async with _installation() as installation:
        image = await installation.push("v1", wat.header_filter("x"))
        ours, theirs, cpu, restart = [], [], [], []
        for _ in range(repeats):
            theirs.append(await _rival(installation, image, size))
            seconds, used, again = await _ours(installation, image, size)
            ours.append(seconds)
            cpu.append(1000 * used / size)
            restart.append(again)
        accepted = await _accepted(installation, image)
    aim = "<= 1.2x"
    return [
        Figure(f"{size} AutoWasms, start to Synced", "s", ours, "crpeer", theirs, aim),
        Figure("the same after a restart", "s", restart),
        Figure("CPU for an object, all in", "ms", cpu),
        Figure("accepted to accepted, p50", "ms", [accepted[0]], target="< 100"),
        Figure("accepted to accepted, p95", "ms", [accepted[1]]),
    ]


@asynccontextmanager
async def _installation() -> AsyncIterator[Installation]:
    for group in ("kubernetes", "registry", "crpeer"):
        for part in provision.GROUPS[group]:
            await asyncio.to_thread(part)
    with tempfile.TemporaryDirectory() as directory:
        arguments = (f"--workers={WORKERS}", "--peers-service=")
        async with (
            kubernetes(Path(directory) / "kubernetes") as cluster,
            installed_without_istiod(cluster, Path(directory), arguments=arguments) as found,
        ):
            yield found


async def _fill(installation: Installation, image: str, size: int) -> None:
    documents = (installation.autowasm(image, name=f"f{number}") for number in range(size))
    await installation.cluster.each(("POST", autowasms(NAMESPACE), one) for one in documents)


async def _empty(installation: Installation) -> None:
    request = installation.cluster.request
    for path in (autowasms(NAMESPACE), envoyfilters(NAMESPACE)):
        await request("DELETE", path, timeout=120)
    async with asyncio.timeout(120):
        while any(
            [(await request("GET", path))["items"] for path in (autowasms(), envoyfilters())]
        ):
            await asyncio.sleep(0.2)


async def _rival(installation: Installation, image: str, size: int) -> float:
    await installation.wasmer.process.stop()
    await _empty(installation)
    await _fill(installation, image, size)
    arguments = ("-config", installation.cluster.kubeconfig, "-n", str(size))
    process = await asyncio.create_subprocess_exec(
        await asyncio.to_thread(provision.crpeer),
        *arguments,
        *("-workers", str(WORKERS)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 300)
    seconds: float = json.loads(out.splitlines()[-1])["seconds"]
    return seconds


async def _ours(installation: Installation, image: str, size: int) -> tuple[float, float, float]:
    """Seconds to Synced, CPU seconds, seconds after a restart."""
    wasmer = installation.wasmer
    await _empty(installation)
    await _fill(installation, image, size)
    since, begun = await installation.audit.position(), time.time()
    await wasmer.start(timeout=120)
    await _synced(installation, size)
    writes = await installation.writes(since)
    took = max(one.answered for one in writes if one.resource == "autowasms/status") - begun
    used = _cpu_seconds(wasmer.process.pid)
    await wasmer.process.stop()
    begun = time.time()
    await wasmer.start(timeout=120)
    await _synced(installation, size)
    return took, used, time.time() - begun


async def _synced(installation: Installation, size: int) -> None:
    wanted = f'autowasm_autowasms{{phase="Synced"}} {float(size)}'
    async with asyncio.timeout(300):
        while True:
            answer = await wire.get(f"http://{installation.wasmer.admin}/metrics")
            if wanted in answer.body.decode():
                return
            await asyncio.sleep(0.2)  # a scrape costs wasmer some milliseconds


async def _accepted(installation: Installation, image: str) -> tuple[float, float]:
    """p50 and p95 in milliseconds, with the blob stored; one object at a time."""
    await _empty(installation)
    if not installation.wasmer.process.alive:
        await installation.wasmer.start()
    audit = installation.audit
    since = await audit.position()
    names = [f"one-{number}" for number in range(100)]
    for name in names:
        document: Document = installation.autowasm(image, name=name)
        await installation.cluster.request("POST", autowasms(NAMESPACE), body=document)
        await installation.wait_envoyfilter(name=name)
    created = {
        one.name or (one.response.get("metadata") or {}).get("name"): one.answered
        for one in await audit.entries(user="admin", since=since)
        if one.resource == "autowasms" and one.verb == "create"
    }
    written = {
        one.name: one.answered
        for one in await installation.writes(since)
        if one.resource == "envoyfilters" and one.verb == "create"
    }
    times = sorted(1000 * (written[name] - created[name]) for name in names if name in created)
    cuts = quantiles(times, n=20)
    return cuts[9], cuts[18]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
