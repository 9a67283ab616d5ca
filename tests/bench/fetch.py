"""Fetching modules: 5 and 50 MB, one and eight at once, from a registry and as objects, compared with oras-py and crane.

The registry is distribution's and nginx serves the objects, both on the other processor. Ours does more: it resolves the
tag, validates the module and syncs it to the disk; the rivals get the digest and leave the file in the page cache.
"""

import asyncio
import hashlib
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import measure
from tests.bench.plan import Plan
from tests.bench.servers import nginx
from tests.bench.table import Figure, Result, at_least, at_most, ratio_at_least
from tests.parts import ports, registry, wat, wire

_MB = 1_000_000
_REPOSITORY = "bench/module"
_CONFIG = b"{}"
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class _Sources:
    images: list[str]
    layers: list[str]
    """The same images, by the digest of the layer."""
    urls: list[str]


async def run(plan: Plan) -> Result:
    """Megabytes a second, processor time, and the longest hold of the event loop."""
    figures: list[Figure] = []
    for size in plan.pick((5, 50), (5,)):
        async with _sources(plan.directory / f"{size}", size) as sources:
            for many in (1, _AT_ONCE):
                figures += await _cell(plan, sources, size, many)
    return Result(figures)


async def _cell(plan: Plan, sources: _Sources, size: int, many: int) -> list[Figure]:
    rounds: dict[str, list[dict[str, Any]]] = {}
    for _ in range(plan.repeats):
        for name, who, kind, references in (
            ("ours", "ours", "registry", sources.images),
            ("oras", "oras", "registry", sources.layers),
            ("crane", "crane", "registry", sources.layers),
            ("object", "ours", "object", sources.urls),
        ):
            words = [who, "--kind", kind, "--warm", references[-1], *references[:many]]
            rounds.setdefault(name, []).append(await _fetch(plan.directory / "out", words))
    what = f"{size} MB × {many}"
    megabytes = size * many

    def rate(name: str) -> list[float]:
        return [megabytes / one["seconds"] for one in rounds[name]]

    def cpu(name: str) -> list[float]:
        return [1000 * one["cpu"] / megabytes for one in rounds[name]]

    large = size == 50
    ratio = ratio_at_least(1.3) if large and many == 1 else ratio_at_least(1)
    figures = [
        Figure(f"registry, {what}", "MB/s", rate("ours"), "oras-py", rate("oras"), ratio),
        Figure(f"registry, {what}", "MB/s", rate("ours"), "crane", rate("crane"), ratio_at_least(1)),
        Figure(f"registry, {what}, processor", "s/GB", cpu("ours"), "oras-py", cpu("oras")),
        Figure(
            f"registry, {what}, longest turn of the loop", "ms",
            [one["longest"] for one in rounds["ours"]], budget=at_most(3 if many == 1 else 6),
        ),
        Figure(f"object, {what}", "MB/s", rate("object")),
        Figure(
            f"object, {what}, longest turn of the loop", "ms",
            [one["longest"] for one in rounds["object"]], budget=at_most(3 if many == 1 else 6),
        ),
    ]  # fmt: skip
    if large and many == 1:
        figures[4] = Figure(f"object, {what}", "MB/s", rate("object"), budget=at_least(600))
        for stage in ("download", "verify", "store"):
            times = [1000 * one["stages"].get(stage, 0.0) for one in rounds["ours"]]
            figures.append(Figure(f"registry, {what}, {stage}", "ms", times))
        figures.append(
            Figure(f"registry, {what}, all of ours", "MB/s", rate("ours"), budget=at_least(600))
        )
    return figures


async def _fetch(directory: Path, words: list[str]) -> dict[str, Any]:
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    command = [*measure.pinned(measure.SERVER_CPU), sys.executable, "-m", "tests.bench.fetching"]
    return await measure.json_of([*command, words[0], "--directory", directory, *words[1:]])


@asynccontextmanager
async def _sources(directory: Path, megabytes: int) -> AsyncIterator[_Sources]:
    modules = await asyncio.to_thread(_modules, directory / "www", megabytes * _MB)
    async with (
        registry.distribution(directory / "registry") as store,
        nginx(directory / "nginx", directory / "www", cpu=measure.CLIENT_CPU) as objects,
    ):
        images, layers, urls = [], [], []
        for number, module in enumerate(modules):
            content = await asyncio.to_thread(module.read_bytes)
            layers.append(await _push(store.url, f"v{number}", content))
            images.append(f"{store.host}/{_REPOSITORY}:v{number}")
            urls.append(f"http://{ports.LOOPBACK}:{objects.port}/{module.name}")
        yield _Sources(images, layers, urls)


def _modules(directory: Path, size: int) -> list[Path]:
    """One image more than are fetched at once."""
    directory.mkdir(parents=True)
    found = []
    for number in range(_AT_ONCE + 1):
        found.append(directory / f"m{number}.wasm")
        found[-1].write_bytes(wat.padded(wat.header_filter(f"{number}"), size=size))
    return found


async def _push(url: str, tag: str, module: bytes) -> str:
    """Push an artifact of one plain layer; returns the reference to the layer. By HTTP, as no tool pushes more than Envoy accepts."""
    base = f"{url}/v2/{_REPOSITORY}"
    digests = [await _upload(base, content) for content in (_CONFIG, module)]
    types = ("application/vnd.wasm.config.v0+json", "application/wasm")
    config, layer = (
        {"mediaType": kind, "digest": digest, "size": len(content)}
        for kind, digest, content in zip(types, digests, (_CONFIG, module), strict=True)
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    }
    headers = {"content-type": str(manifest["mediaType"])}
    answer = await wire.request(
        "PUT", f"{base}/manifests/{tag}", headers=headers, body=json.dumps(manifest).encode()
    )
    assert answer.status == 201, answer.body
    return f"{url.partition('//')[2]}/{_REPOSITORY}@{digests[1]}"


async def _upload(base: str, content: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    begun = await wire.request("POST", f"{base}/blobs/uploads/")
    place = begun.headers["location"]
    join = "&" if "?" in place else "?"
    answer = await wire.request(
        "PUT",
        f"{place}{join}digest={digest}",
        headers={"content-type": "application/octet-stream"},
        body=content,
        timeout=120,
    )
    assert answer.status == 201, answer.body
    return digest
