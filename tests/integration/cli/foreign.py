"""Images in every layout, built by crane and oras and by hand, never by `wasmc push`.

Each builder puts a module under a name. It has the name of the row of the table in `registry/layouts.py`.
"""

import asyncio
import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zstandard

from tests.parts.clients import Client
from tests.unit.wasm.archives import tar

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
SOLO: Final = "application/vnd.module.wasm.content.layer.v1+wasm"
SOLO_CONFIG: Final = "application/vnd.module.wasm.config.v1+json"


@dataclass(frozen=True, slots=True)
class Builder:
    """Files in `home`, a registry's `repository`, and two foreign clients."""

    home: Path
    repository: str
    crane: Client
    oras: Client

    async def write(self, name: str, data: bytes) -> None:
        """A file in the home folder."""
        await asyncio.to_thread((self.home / name).write_bytes, data)

    async def push(self, tag: str, config: str, *files: str) -> None:
        """By oras; the config has the content `{}`."""
        await self.write("config.json", b"{}")
        await self.oras.run(
            "push", "--plain-http", "--config", f"config.json:{config}", self.name(tag), *files
        )

    async def append(self, tag: str, *layers: bytes, oci: bool = True) -> None:
        """By crane: gzipped tar layers, in this order."""
        names = []
        for number, layer in enumerate(layers):
            names.append(f"{number}.tar.gz")
            await self.write(names[-1], gzip.compress(layer))
        flags = [part for name in names for part in ("-f", name)]
        empty = ["--oci-empty-base"] if oci else []
        await self.crane.run("append", *empty, *flags, "-t", self.name(tag))

    async def put(self, tag: str, manifest: Mapping[str, Any], media_type: str) -> str:
        """A manifest as it is; its digest."""
        data = json.dumps(manifest).encode()
        await self.write("manifest.json", data)
        await self.oras.run(
            *("manifest", "push", "--plain-http", "--media-type", media_type),
            *(self.name(tag), "manifest.json"),
        )
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    async def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Upload a blob; its descriptor."""
        await self.write("blob", data)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        await self.oras.run("blob", "push", "--plain-http", f"{self.repository}@{digest}", "blob")
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    async def by_hand(
        self, tag: str, *layers: tuple[bytes, str], config: str, kind: str | None = MANIFEST
    ) -> dict[str, Any]:
        """An image written byte by byte; its descriptor. `kind` None: a manifest that does not name its type."""
        manifest: dict[str, Any] = {"schemaVersion": 2}
        if kind:
            manifest["mediaType"] = kind
        manifest["config"] = await self.blob(b'{"os":"linux","architecture":"amd64"}', config)
        manifest["layers"] = [await self.blob(data, media_type) for data, media_type in layers]
        digest = await self.put(tag, manifest, kind or MANIFEST)
        size = len(json.dumps(manifest))
        return {"mediaType": kind or MANIFEST, "digest": digest, "size": size}

    def name(self, tag: str) -> str:
        """The whole reference."""
        return f"{self.repository}:{tag}"


Build = Callable[[Builder, str, bytes], Awaitable[object]]

_TAR = "application/vnd.oci.image.layer.v1.tar"
_IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
_DOCKER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_README = tar({"readme": b"hello"})


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


async def _solo(builder: Builder, tag: str, module: bytes) -> None:
    await builder.write("filter.wasm", module)
    await builder.write("runtime-config.json", b'{"type":"envoy_proxy"}')
    layers = (f"runtime-config.json:{SOLO_CONFIG}", f"filter.wasm:{SOLO}")
    await builder.push(tag, SOLO_CONFIG, *layers)


async def _one_raw(
    builder: Builder, tag: str, module: bytes, *, config: str, layer: str = SOLO
) -> None:
    await builder.write("filter.wasm", module)
    await builder.push(tag, config, f"filter.wasm:{layer}")


async def _plain_tar(builder: Builder, tag: str, module: bytes) -> None:
    await builder.by_hand(tag, (tar({"plugin.wasm": module}), _TAR), config=_IMAGE_CONFIG)


async def _zstd_tar(builder: Builder, tag: str, module: bytes) -> None:
    layer = _zstd(tar({"plugin.wasm": module}))
    await builder.by_hand(tag, (layer, f"{_TAR}+zstd"), config=_IMAGE_CONFIG)


async def _docker_by_hand(
    builder: Builder, tag: str, data: bytes, *, suffix: str = ""
) -> dict[str, Any]:
    return await builder.by_hand(
        tag, (data, _DOCKER_TAR + suffix), config=_DOCKER_CONFIG, kind=DOCKER_MANIFEST
    )


async def _wasm_to_oci(builder: Builder, tag: str, module: bytes) -> None:
    layer = (module, "application/vnd.wasm.content.layer.v1+wasm")
    await builder.by_hand(tag, layer, config="application/vnd.wasm.config.v1+json", kind=None)


ROWS: Final[Mapping[str, Build]] = {
    "solo artifact, two layers": _solo,
    "solo artifact, another number of layers": lambda b, t, m: _one_raw(
        b, t, m, config=SOLO_CONFIG
    ),
    "compat image, module in the last layer": lambda b, t, m: b.append(
        t, _README, tar({"./plugin.wasm": m})
    ),
    "compat image, module in an earlier layer": lambda b, t, m: b.append(
        t, tar({"plugin.wasm": m}), _README
    ),
    "compat image, not compressed": _plain_tar,
    "compat image, zstd": _zstd_tar,
    "Docker image, module in the last layer": lambda b, t, m: b.append(
        t, _README, tar({"opt/plugin.wasm": m}), oci=False
    ),
    "Docker image, module in an earlier layer": lambda b, t, m: b.append(
        t, tar({"plugin.wasm": m}), _README, oci=False
    ),
    "Docker image, not compressed": lambda b, t, m: _docker_by_hand(b, t, tar({"plugin.wasm": m})),
    "Docker image, zstd": lambda b, t, m: _docker_by_hand(
        b, t, _zstd(tar({"plugin.wasm": m})), suffix=".zstd"
    ),
    "CNCF artifact": lambda b, t, m: _one_raw(
        b, t, m, config="application/vnd.wasm.config.v0+json", layer="application/wasm"
    ),
    "CNCF artifact, another config": lambda b, t, m: _one_raw(
        b, t, m, config="application/vnd.wasm.config.v1+json", layer="application/wasm"
    ),
    "wasm-to-oci, Kubewarden": _wasm_to_oci,
}
"""By the row of the table. Every row must be here: a test sees to it."""
