"""The entry of an index that is marked as wasm is used: indexes in a real registry, as buildx, oras and crane write them."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from autowasm.registry import mediatypes
from tests.parts import registry, wasmer, wat, wire
from tests.parts.commandline import CommandLine

MODULE = wat.header_filter("of-the-index")
OTHER = b"\x1f\x8b not a module"


class ManifestUploads(CommandLine):
    """A registry into which manifests are put byte for byte."""

    async def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        url = f"{self.registry.url}/v2/team/filter/blobs/uploads/"
        begun = await wire.request("POST", url)
        location = begun.headers["location"]
        done = await wire.request("PUT", f"{location}&digest={digest}", body=data)
        assert done.status == 201
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    async def put(self, document: dict[str, Any], tag: str = "") -> dict[str, Any]:
        data = json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        url = f"{self.registry.url}/v2/team/filter/manifests/{tag or digest}"
        headers = {"Content-Type": document["mediaType"]}
        assert (await wire.request("PUT", url, body=data, headers=headers)).status == 201
        return {"mediaType": document["mediaType"], "digest": digest, "size": len(data)}

    async def put_image(self, *, wasm: bool, layer: bytes = MODULE) -> dict[str, Any]:
        """An ordinary container image, or an artifact of the CNCF's layout."""
        config = mediatypes.CNCF_CONFIG_V0 if wasm else mediatypes.OCI_IMAGE_CONFIG
        kind = mediatypes.CNCF_WASM if wasm else mediatypes.OCI_LAYER_TAR_GZIP
        return await self.put(
            {
                "schemaVersion": 2,
                "mediaType": mediatypes.OCI_MANIFEST,
                "config": await self.blob(b"{}", config),
                "layers": [await self.blob(layer if wasm else OTHER, kind)],
            }
        )


@pytest.fixture
async def uploads(tmp_path: Path) -> AsyncIterator[ManifestUploads]:
    async with registry.distribution(tmp_path / "registry") as server:
        yield ManifestUploads(tmp_path, server, wasmer.wasmc(tmp_path))


@pytest.mark.parametrize(
    "entry",
    [
        {"platform": {"architecture": "wasm", "os": "wasip1"}},
        {"platform": {"architecture": "wasm32", "os": "wasi"}},
        {"artifactType": mediatypes.CNCF_CONFIG_V0},
        {"annotations": {"org.opencontainers.image.title": "filter.wasm"}},
        {},
        {"platform": {"architecture": "arm64", "os": "linux"}},
    ],
    ids=["platform", "platform-wasi", "artifact-type", "annotation", "manifest-only", "arm64"],
)
@pytest.mark.parametrize("first", [True, False], ids=["wasm-first", "wasm-last"])
async def test_the_index_entry_marked_as_wasm_is_pulled(
    uploads: ManifestUploads, entry: dict[str, Any], first: bool
) -> None:
    amd64 = {"platform": {"architecture": "amd64", "os": "linux"}}
    entries = [
        await uploads.put_image(wasm=True) | entry,
        await uploads.put_image(wasm=False) | amd64,
    ]
    index = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_INDEX,
        "manifests": entries if first else entries[::-1],
    }
    await uploads.put(index, "v1")
    await uploads.wasmc.run("pull", uploads.image("v1"))
    assert (uploads.home / "filter.wasm").read_bytes() == MODULE
