"""`python -m tests.bench.fetching WHO --kind K --directory D REF...`: fetches all of these at once, and measures this process.

WHO: `ours` (the controller's fetcher: resolve, download, verify, validate, fsync, store), `oras` (oras-py's download_blob in
threads, then hashing, which it does not do itself), `crane` (`crane blob`, which hashes; one process each). REF is
`HOST/REPOSITORY@sha256:DIGEST` for rivals, an image or URL for ours. One JSON line at the end.
"""

import argparse
import asyncio
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_MOST = 64 << 20


def measured(work: Callable[[], object]) -> dict[str, Any]:
    """Wall and processor seconds of `work`, children included."""
    begun, cpu = time.perf_counter(), _cpu()
    work()
    return {"seconds": time.perf_counter() - begun, "cpu": _cpu() - cpu}


def _cpu() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in uses)


async def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """A fetcher with the runtime's settings, except for limits that allow modules of 50 MB and all of them at once."""
    from contextlib import AsyncExitStack  # noqa: PLC0415

    from autowasm.api.v1alpha1 import Source  # noqa: PLC0415
    from autowasm.artifacts.fetcher import ArtifactFetcher  # noqa: PLC0415
    from autowasm.artifacts.image import ImageSource  # noqa: PLC0415
    from autowasm.artifacts.object import HttpObjectSource  # noqa: PLC0415
    from autowasm.artifacts.source import FetchRequest  # noqa: PLC0415
    from autowasm.blobs.store import BlobStore  # noqa: PLC0415
    from autowasm.limits import FetchLimits, Limits  # noqa: PLC0415
    from autowasm.net.addresspolicy import AddressPolicy  # noqa: PLC0415
    from autowasm.net.pools import Pools  # noqa: PLC0415
    from autowasm.net.session import ObjectSession  # noqa: PLC0415
    from autowasm.performance.eventloop import LoopTiming, TimedLoop  # noqa: PLC0415
    from autowasm.registry.client import RegistryClient  # noqa: PLC0415
    from autowasm.settings import Outgoing, Settings  # noqa: PLC0415
    from autowasm.telemetry.metrics import Metrics  # noqa: PLC0415
    from tests.fakes.autowasms import autowasm  # noqa: PLC0415
    from tests.fakes.pullsecrets import FakeSecrets  # noqa: PLC0415

    def source(text: str) -> Source:
        if arguments.kind == "registry":
            return autowasm(image=text).spec.filter.source
        return autowasm(source={"object": {"url": text}}).spec.filter.source

    many = len(arguments.references)
    host = arguments.references[0].split("/")[2 if arguments.kind == "object" else 0]
    limits = Limits(module_bytes=_MOST, layer_bytes=_MOST)
    settings = Settings(
        cache_dir=arguments.directory,
        limits=limits,
        fetch=FetchLimits(per_namespace_host=many, per_namespace=many, per_host=many),
    )
    outgoing = Outgoing(allow_cidr=("127.0.0.0/8",), plain_http=frozenset({host}))
    policy, metrics = AddressPolicy(allow=outgoing.allow_cidr), Metrics()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TimedLoop)
    async with AsyncExitStack() as stack:
        pools = stack.enter_context(Pools())
        pools.start()
        store = await stack.enter_async_context(
            BlobStore(arguments.directory, pools=pools, metrics=metrics)
        )
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        registry = RegistryClient(outgoing=outgoing, limits=limits, pools=pools, policy=policy)
        stack.push_async_callback(registry.close)
        session = ObjectSession(outgoing=outgoing, limits=limits, pools=pools, policy=policy)
        stack.push_async_callback(session.close)
        fetcher = ArtifactFetcher(
            settings=settings,
            store=store,
            sources={
                "registry": ImageSource(registry, limits=limits, pools=pools),
                "object": HttpObjectSource(session, limits=limits, pools=pools),
            },
            secrets=FakeSecrets(),
            pools=pools,
            metrics=metrics,
            tasks=tasks,
        )
        requests = [FetchRequest("default", source(one)) for one in arguments.references]
        await fetcher.fetch(FetchRequest("default", source(arguments.warm)))  # everything imported
        await asyncio.sleep(0.2)
        loop.timing.iterations = iterations = LoopTiming()
        before = _stages(metrics)
        begun, cpu = time.perf_counter(), _cpu()
        await asyncio.gather(*(fetcher.fetch(one) for one in requests))
        found = {"seconds": time.perf_counter() - begun, "cpu": _cpu() - cpu}
        stages = {name: value - before.get(name, 0) for name, value in _stages(metrics).items()}
    return {**found, "longest": 1000 * iterations.longest, "stages": stages}


def _stages(metrics: Any) -> dict[str, float]:
    """Seconds so far by stage."""
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "autowasm_fetch_duration_seconds_sum":
                found[sample.labels["stage"]] = sample.value
    return found


def oras(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fetch like users of oras-py: one call per thread."""
    import oras.client  # noqa: PLC0415

    def get(numbered: tuple[int, str]) -> None:
        number, reference = numbered
        container, _, digest = reference.partition("@")
        client = oras.client.OrasClient(hostname=container.split("/")[0], insecure=True)
        target = arguments.directory / str(number)
        client.download_blob(container, digest, str(target))
        hashed = hashlib.sha256()
        with target.open("rb") as file:
            while block := file.read(_CHUNK):
                hashed.update(block)
        assert f"sha256:{hashed.hexdigest()}" == digest, reference

    with ThreadPoolExecutor(len(arguments.references)) as pool:
        get((0, arguments.warm))
        return measured(lambda: list(pool.map(get, enumerate(arguments.references))))


def crane(arguments: argparse.Namespace) -> dict[str, Any]:
    """One process each; its start takes some milliseconds."""
    import subprocess  # noqa: PLC0415

    from tests.parts import provision  # noqa: PLC0415

    program = provision.crane()

    def get(numbered: tuple[int, str]) -> None:
        number, reference = numbered
        with (arguments.directory / str(number)).open("wb") as target:
            subprocess.run([program, "blob", "--insecure", reference], stdout=target, check=True)

    with ThreadPoolExecutor(len(arguments.references)) as pool:
        get((0, arguments.warm))
        return measured(lambda: list(pool.map(get, enumerate(arguments.references))))


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=("ours", "oras", "crane"))
    parser.add_argument("--kind", choices=("registry", "object"), default="registry")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--warm", required=True, help="fetched first, not measured")
    parser.add_argument("references", nargs="+")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True)
    if arguments.who == "ours":
        from autowasm.limits import LoopLimits  # noqa: PLC0415
        from autowasm.performance import eventloop  # noqa: PLC0415
        from autowasm.performance.eventloop import TimedLoop  # noqa: PLC0415

        eventloop.tune_gc()
        sys.setswitchinterval(LoopLimits().switch)  # as `runtime.process` does
        with asyncio.Runner(loop_factory=TimedLoop) as runner:
            found = runner.run(ours(arguments))
    else:
        found = {"oras": oras, "crane": crane}[arguments.who](arguments)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
