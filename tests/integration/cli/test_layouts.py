"""Every layout of the table, built by foreign clients: we read it, and the other consumers behave as `--compat` reports."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autowasm.registry.layouts import ISTIO, VARIANTS
from tests.integration.cli import foreign
from tests.integration.cli.foreign import Builder
from tests.parts import clients, registry, wasmer, wat
from tests.parts.clients import Client
from tests.parts.commandline import CommandLine
from tests.unit.wasm.archives import tar

MODULE = wat.header_filter("world")
OTHER = wat.header_filter("other")
SHA256 = hashlib.sha256(MODULE).hexdigest()


@dataclass(frozen=True)
class ForeignImages(CommandLine):
    """Images by a builder that has nothing of ours, for `wasmc` and for the istio-agent's fetcher."""

    builder: Builder
    agent: Client

    async def inspect(self, tag: str, *flags: str, status: int = 0) -> dict[str, Any]:
        done = await self.wasmc.run(
            "inspect", self.builder.name(tag), "--compat", "--json", *flags, check=False
        )
        assert done.returncode == status, done
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    async def fetched_by_istio(self, tag: str) -> bytes | None:
        """The module that the istio-agent's code reads; None if it refuses the image."""
        done = await self.agent.run(
            self.home / "agent" / tag, f"oci://{self.builder.name(tag)}", check=False
        )
        if done.returncode:
            assert "could not fetch" in done.stderr or "is invalid" in done.stderr, done
            return None
        return await asyncio.to_thread(Path(done.stdout.splitlines()[-1]).read_bytes)


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[ForeignImages]:
    home = tmp_path / "foreign"
    await asyncio.to_thread(home.mkdir)
    async with registry.distribution(tmp_path / "registry") as server:
        repository = f"{server.host}/team/filter"
        crane, oras = await clients.crane(home), await clients.oras(home)
        builder = Builder(home, repository, crane, oras)
        agent = await clients.istio_wasm_fetch(tmp_path / "home")
        yield ForeignImages(tmp_path, server, wasmer.wasmc(tmp_path), builder, agent)


def readers(report: dict[str, Any]) -> set[str]:
    return {consumer for consumer, answer in report["compat"].items() if answer["pulls"]}


def test_every_row_of_the_table_is_built() -> None:
    assert list(foreign.ROWS) == [variant.name for variant in VARIANTS]


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
async def test_every_row_is_read_and_named_and_its_readers_are_those_of_the_table(
    images: ForeignImages, variant: Any
) -> None:
    await foreign.ROWS[variant.name](images.builder, "row", MODULE)
    report = await images.inspect("row")
    assert report["layout"] == variant.name
    assert report["module"]["sha256"] == SHA256
    assert readers(report) == set(variant.readers)
    assert all(answer["why"] for answer in report["compat"].values() if not answer["pulls"])

    pulled = await images.wasmc.run(
        "pull", images.builder.name("row"), "-o", f"{images.home / 'out'}/"
    )
    assert SHA256 in pulled.stdout
    expected = MODULE if ISTIO in variant.readers else None
    assert await images.fetched_by_istio("row") == expected


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("artifact", {"wasmer", "Istio", "Envoy Gateway", "wasme"}),
        ("image", {"wasmer", "Istio", "Envoy Gateway"}),
        ("cncf", {"wasmer", "wkg"}),
        ("kwctl", {"wasmer", "kwctl"}),
    ],
)
async def test_each_pushed_format_is_read_by_its_intended_clients(
    images: ForeignImages, form: str, wanted: set[str]
) -> None:
    flags = ("--annotation", "team=a=b", "--source", "https://git.example/x", "--version", "1.2")
    await images.push("ours", MODULE, "--format", form, *flags)
    report = await images.inspect("ours")
    assert readers(report) == wanted
    assert (
        report["image"]["annotations"].items()
        >= {
            "team": "a=b",
            "org.opencontainers.image.source": "https://git.example/x",
            "org.opencontainers.image.version": "1.2",
        }.items()
    )
    assert await images.fetched_by_istio("ours") == (MODULE if "Istio" in wanted else None)

    crane, oras = images.builder.crane, images.builder.oras
    name = images.builder.name("ours")
    manifest = json.loads((await crane.run("manifest", name)).stdout)
    assert manifest.get("artifactType") == report["image"]["artifactType"]
    if form == "image":
        await crane.run("validate", "--remote", name)
    else:
        await oras.run("pull", "--plain-http", "-o", "oras", name)
        assert (images.builder.home / "oras" / "filter.wasm").read_bytes() == MODULE


async def test_pushing_the_same_twice_gives_the_same_digest(images: ForeignImages) -> None:
    for form in ("artifact", "image", "cncf", "kwctl"):
        told = []
        for order in (("a=1", "b=2"), ("b=2", "a=1")):
            flags = [part for each in order for part in ("--annotation", each)]
            pushed = await images.push("same", MODULE, "--format", form, *flags)
            told.append(pushed.stdout)
        assert told[0] == told[1]


async def test_a_module_that_a_later_layer_deleted_is_not_found(images: ForeignImages) -> None:
    layers = tar({"plugin.wasm": MODULE}), tar({".wh.plugin.wasm": b""})
    await images.builder.append("deleted", *layers)
    report = await images.inspect("deleted", status=1)
    assert (report["reason"], report["module"]) == ("ModuleNotFoundInArchive", None)
    assert "deletes plugin.wasm" in report["message"]
    assert readers(report) == set()


async def test_istio_takes_the_first_plugin_of_the_last_layer_even_if_invalid(
    images: ForeignImages,
) -> None:
    await images.builder.append("odd", tar({"a/plugin.wasm": b"rubbish", "plugin.wasm": MODULE}))
    report = await images.inspect("odd")
    assert readers(report) == {"wasmer"}
    assert await images.fetched_by_istio("odd") is None


async def test_attestation_in_an_index_is_ignored(images: ForeignImages) -> None:
    image = await images.builder.by_hand(
        "child", (MODULE, foreign.SOLO), (b"{}", foreign.SOLO_CONFIG), config=foreign.SOLO_CONFIG
    )
    proof = await images.builder.by_hand(
        "proof", (b"{}", "application/vnd.in-toto+json"), config=foreign.SOLO_CONFIG
    )
    proof |= {
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    for architecture, istio in (("amd64", True), ("arm64", False)):
        child = image | {"platform": {"os": "linux", "architecture": architecture}}
        index = {"schemaVersion": 2, "mediaType": foreign.INDEX, "manifests": [proof, child]}
        await images.builder.put(architecture, index, foreign.INDEX)
        report = await images.inspect(architecture)
        assert report["image"]["index"] is True
        assert report["image"]["manifest"] == image["digest"]
        assert ("Istio" in readers(report)) is istio
        fetched = await images.fetched_by_istio(architecture)
        assert fetched == (MODULE if istio else None)
        required = await images.inspect(
            architecture, "--require", "istio", status=0 if istio else 1
        )
        assert required["accepted"] is True


async def test_each_reader_of_an_index_is_judged_by_the_image_that_it_takes(
    images: ForeignImages,
) -> None:
    """We take the one for wasm; Istio the one for linux/amd64, which is in another layout."""
    ours = await images.builder.by_hand(
        "ours", (MODULE, "application/wasm"), config="application/vnd.wasm.config.v0+json"
    )
    theirs = await images.builder.by_hand(
        "theirs", (OTHER, foreign.SOLO), (b"{}", foreign.SOLO_CONFIG), config=foreign.SOLO_CONFIG
    )
    manifests = [
        theirs | {"platform": {"os": "linux", "architecture": "amd64"}},
        ours | {"platform": {"os": "wasip1", "architecture": "wasm"}},
    ]
    index = {"schemaVersion": 2, "mediaType": foreign.INDEX, "manifests": manifests}
    await images.builder.put("index", index, foreign.INDEX)
    report = await images.inspect("index")
    assert report["module"]["sha256"] == SHA256
    assert readers(report) == {"wasmer", "Istio", "Envoy Gateway"}
    assert await images.fetched_by_istio("index") == OTHER


async def test_an_index_in_an_index_is_refused(images: ForeignImages) -> None:
    image = await images.builder.by_hand(
        "child", (MODULE, foreign.SOLO), config=foreign.SOLO_CONFIG
    )
    inner = {"schemaVersion": 2, "mediaType": foreign.INDEX, "manifests": [image]}
    digest = await images.builder.put("inner", inner, foreign.INDEX)
    size = len(json.dumps(inner))
    entry = {"mediaType": foreign.INDEX, "digest": digest, "size": size}
    outer = {"schemaVersion": 2, "mediaType": foreign.INDEX, "manifests": [entry]}
    await images.builder.put("outer", outer, foreign.INDEX)
    done = await images.wasmc.run("inspect", images.builder.name("outer"), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "an index in an index is not followed" in done.stderr


@pytest.mark.parametrize(
    ("layers", "reason", "named"),
    [
        (((MODULE, foreign.SOLO), (OTHER, foreign.SOLO)), "AmbiguousModule", "holds 2 modules"),
        (((b"chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),), "UnsupportedLayout", "helm"),
        (((b"\0asm\x0d\0\1\0", "application/wasm"),), "WasmComponent", "component"),
        (((MODULE, "application/vnd.oci.image.layer.v1.tar"),), "ArchiveInvalid", "bare WebAssembly"),
    ],
    ids=["two-modules", "foreign", "component", "bare-module-as-tar"],
)  # fmt: skip
async def test_refused_image_is_reported_with_its_reason(
    images: ForeignImages, layers: tuple[tuple[bytes, str], ...], reason: str, named: str
) -> None:
    await images.builder.by_hand("bad", *layers, config="application/vnd.unknown.config.v1+json")
    report = await images.inspect("bad", status=1)
    assert (report["accepted"], report["reason"]) == (False, reason)
    assert named in report["message"]
    assert "wasmer" not in readers(report)
    text = await images.wasmc.run("inspect", images.builder.name("bad"), check=False)
    assert text.returncode == 1
    assert f"[{reason}]" in text.stdout.replace("\n", " ")
    assert text.stderr == ""
