"""The module in an image: which layers are downloaded, which file is taken."""

import asyncio
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard

from autowasm.artifacts.image import PulledModule, known_sha256, pull_module
from autowasm.digest import Digest
from autowasm.errors import ContentRejected, SourceUnavailable
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry import mediatypes
from autowasm.registry.client import RegistryClient, ResolvedImage
from autowasm.registry.layouts import choose_layout
from autowasm.registry.manifest import Descriptor, Manifest

REFERENCE = ImageReference.parse("r.example/team/app:v1")
MODULE = b"\0asm\x01\0\0\0 the module"
OTHER = b"\0asm\x01\0\0\0 another"


@dataclass
class Shelf:
    """Replaces the registry client, which has tests of its own: serves layers and records their downloads."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    downloaded: list[bytes] = field(default_factory=list)
    on_disk: int = 0
    hangs: bool = False

    def add(self, media_type: str, data: bytes) -> Descriptor:
        digest = str(Digest.of(data))
        self.blobs[digest] = data
        return Descriptor(media_type=media_type, digest_text=digest, size=len(data))

    async def download(
        self,
        reference: ImageReference,
        descriptor: Descriptor,
        destination: Path,
        *,
        credential: object,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        data = self.blobs[descriptor.digest_text]
        self.downloaded.append(data)
        await asyncio.to_thread(destination.write_bytes, data)
        files = await asyncio.to_thread(lambda: list(destination.parent.iterdir()))
        self.on_disk = max(self.on_disk, len(files))
        if on_bytes:
            on_bytes(len(data))


@dataclass
class ImagePuller:
    """Pulls images with layers of the shelf into a folder."""

    shelf: Shelf
    folder: Path
    pools: Pools
    limits: Limits = field(default_factory=Limits)

    async def pull(self, *layers: Descriptor) -> PulledModule:
        manifest = Manifest(
            schema_version=2,
            config=self.shelf.add(mediatypes.OCI_IMAGE_CONFIG, b"{}"),
            layers=layers,
        )
        resolved = ResolvedImage(Digest.of(b"manifest"), manifest)
        return await pull_module(
            cast(RegistryClient, self.shelf),
            REFERENCE,
            resolved,
            self.folder / "staged",
            credential=None,
            limits=self.limits,
            pools=self.pools,
            workdir=self.folder,
        )

    async def rejected(self, *layers: Descriptor) -> ContentRejected:
        with pytest.raises(ContentRejected) as caught:
            await self.pull(*layers)
        return caught.value

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def puller(tmp_path: Path) -> Iterator[ImagePuller]:
    with Pools(transfers=1) as pools:
        yield ImagePuller(Shelf(), tmp_path, pools)


Contents = Sequence[tuple[str, bytes | str]]
"""Names and contents; a text stands for a link, or for a folder where the name ends in a slash."""


def tar(*members: tuple[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            else:
                entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.SYMTYPE
                entry.linkname = "" if name.endswith("/") else content
                archive.addfile(entry)
    return buffer.getvalue()


def layers(shelf: Shelf, contents: Sequence[Contents]) -> list[Descriptor]:
    return [
        shelf.add(mediatypes.OCI_LAYER_TAR_GZIP, gzip.compress(tar(*each))) for each in contents
    ]


async def test_an_artifact_is_downloaded_to_its_place(puller: ImagePuller) -> None:
    config = puller.shelf.add(mediatypes.WASM_CONFIG, b"{}")
    content = puller.shelf.add(mediatypes.WASM_CONTENT, MODULE)
    pulled = await puller.pull(config, content)
    assert pulled == PulledModule(Digest.of(MODULE).hex, "")
    assert puller.shelf.downloaded == [MODULE]
    assert (puller.folder / "staged").read_bytes() == MODULE
    assert puller.files == ["staged"]


async def test_an_artifact_larger_than_envoy_takes_is_not_downloaded(puller: ImagePuller) -> None:
    puller.limits = Limits(module_bytes=4)
    error = await puller.rejected(puller.shelf.add(mediatypes.WASM_CONTENT, MODULE))
    assert error.reason == "TooLarge"
    assert puller.shelf.downloaded == []


async def test_an_artifact_as_large_as_the_limit_is_downloaded(puller: ImagePuller) -> None:
    layer = puller.shelf.add(mediatypes.WASM_CONTENT, MODULE)
    puller.limits = Limits(module_bytes=len(MODULE) - 1)
    assert (await puller.rejected(layer)).reason == "TooLarge"
    puller.limits = Limits(module_bytes=len(MODULE))
    pulled = await puller.pull(layer)
    assert pulled.layer == layer


@pytest.mark.parametrize(
    ("media_type", "pack"),
    [
        (mediatypes.OCI_LAYER_TAR, bytes),
        (mediatypes.OCI_LAYER_TAR_GZIP, gzip.compress),
        (mediatypes.OCI_LAYER_TAR_ZSTD, zstandard.ZstdCompressor().compress),
        (mediatypes.DOCKER_LAYER_TAR_GZIP, gzip.compress),
    ],
)
async def test_every_packing_is_unpacked(puller: ImagePuller, media_type: str, pack: Any) -> None:
    layer = puller.shelf.add(media_type, pack(tar(("./plugin.wasm", MODULE))))
    pulled = await puller.pull(layer)
    assert pulled == PulledModule(Digest.of(MODULE).hex, "./plugin.wasm")
    assert (puller.folder / "staged").read_bytes() == MODULE
    assert puller.files == ["staged"]


@pytest.mark.parametrize(
    ("contents", "downloads"),
    [
        # From the first layer to the last.
        ([[("plugin.wasm", OTHER)], [("plugin.wasm", MODULE)]], 1),
        ([[("plugin.wasm", OTHER)], [("filter.wasm", MODULE)]], 1),
        ([[("plugin.wasm", MODULE)], [("readme", b"")]], 2),
        ([[("readme", b"")], [("deep/down/it.wasm", MODULE)]], 2),
        ([[("plugin.wasm", MODULE)], [("other.wasm", OTHER)]], 2),
        ([[("it.wasm", OTHER)], [("it.wasm", MODULE)], [("readme", b"")]], 3),
        ([[("x", b"")], [("filter.wasm", OTHER), ("plugin.wasm", MODULE), ("z.wasm", OTHER)]], 1),
        ([[("a.wasm", OTHER)], [("deep/down/plugin.wasm", MODULE)]], 1),
        ([[("a.wasm", OTHER)], [("deep/filter.wasm", MODULE), ("b.wasm", OTHER)]], 1),
        ([[("plugin.wasm", MODULE)], [("my-plugin.wasm", OTHER)]], 2),
    ],
    ids=[
        "last-wins",
        "last-wins-whatever-name",
        "first",
        "only",
        "preferred",
        "hidden",
        "in-one",
        "preferred-in-a-folder",
        "filter-in-a-folder",
        "preferred-is-the-whole-name",
    ],
)
async def test_of_several_layers_the_right_module_is_taken(
    puller: ImagePuller, contents: list[list[tuple[str, bytes]]], downloads: int
) -> None:
    pulled = await puller.pull(*layers(puller.shelf, contents))
    assert (puller.folder / "staged").read_bytes() == MODULE
    assert pulled.sha256 == Digest.of(MODULE).hex
    assert len(puller.shelf.downloaded) == downloads
    assert puller.shelf.on_disk <= 2
    assert puller.files == ["staged"]


@pytest.mark.parametrize(
    "above",
    [
        [(".wh.plugin.wasm", b"")],
        [("./.wh.plugin.wasm", b"")],
        [(".wh..wh..opq", b"")],
        [("./.wh..wh..opq", b""), ("readme", b"")],
        [("plugin.wasm", "a link elsewhere")],
        [("plugin.wasm/", "a folder")],
    ],
    ids=["whiteout", "dotted", "opaque", "opaque-dotted", "link", "folder"],
)
async def test_a_module_that_a_later_layer_took_away_is_not_found(
    puller: ImagePuller, above: list[tuple[str, bytes | str]]
) -> None:
    error = await puller.rejected(*layers(puller.shelf, [[("plugin.wasm", MODULE)], above]))
    assert error.reason == "ModuleNotFoundInArchive"
    assert "a later layer deletes plugin.wasm" in str(error)
    assert puller.files == []


@pytest.mark.parametrize(
    "above",
    [
        [("opt/.wh.filters", b"")],
        [("opt/filters/.wh..wh..opq", b"")],
        [("opt/.wh..wh..opq", b"")],
        [(".wh.opt", b"")],
        [("opt", b"now a file")],
        [("opt/filters", "a link")],
    ],
    ids=["folder", "opaque", "opaque-above", "folder-above", "file", "link"],
)
async def test_a_module_removed_by_a_later_layer_is_not_found(
    puller: ImagePuller, above: list[tuple[str, bytes | str]]
) -> None:
    contents = [[("opt/filters/plugin.wasm", OTHER)], above]
    error = await puller.rejected(*layers(puller.shelf, contents))
    assert error.reason == "ModuleNotFoundInArchive"
    await puller.pull(*layers(puller.shelf, [*contents, [("opt/filters/plugin.wasm", MODULE)]]))
    assert (puller.folder / "staged").read_bytes() == MODULE


@pytest.mark.parametrize(
    "above",
    [
        [(".wh.plugin.wasm", b""), ("plugin.wasm", MODULE)],
        [("plugin.wasm", MODULE), (".wh..wh..opq", b"")],
        [("lib/.wh.plugin.wasm", b"")],
        [("lib/.wh..wh..opq", b"")],
        [(".wh..wh.plnk", b"")],
        [(".wh.plugin", b""), ("lib/", "a folder")],
    ],
    ids=["put-back", "put-back-opaque", "elsewhere", "opaque-elsewhere", "driver", "other-name"],
)
async def test_whiteouts_hide_only_the_named_files_of_lower_layers(
    puller: ImagePuller, above: list[tuple[str, bytes | str]]
) -> None:
    await puller.pull(*layers(puller.shelf, [[("plugin.wasm", MODULE)], above]))
    assert (puller.folder / "staged").read_bytes() == MODULE


async def test_the_only_module_left_is_taken(puller: ImagePuller) -> None:
    contents = [[("a.wasm", OTHER)], [("b.wasm", MODULE)], [(".wh.a.wasm", b"")]]
    pulled = await puller.pull(*layers(puller.shelf, contents))
    assert (pulled.member, pulled.sha256) == ("b.wasm", Digest.of(MODULE).hex)


async def test_names_above_the_module_have_a_limit(puller: ImagePuller) -> None:
    puller.limits = Limits(image_entries=3)
    many = [(f"{number}", b"") for number in range(4)]
    error = await puller.rejected(*layers(puller.shelf, [[("plugin.wasm", MODULE)], many]))
    assert error.reason == "ArchiveTooLarge"
    assert puller.files == []


async def test_a_bare_module_in_a_layer_that_says_tar_is_distinguished_from_a_damaged_one(
    puller: ImagePuller,
) -> None:
    error = await puller.rejected(puller.shelf.add(mediatypes.OCI_LAYER_TAR, MODULE + bytes(600)))
    assert error.reason == "ArchiveInvalid"
    assert "application/wasm" in str(error)


async def test_ambiguous_modules_are_rejected_by_name(puller: ImagePuller) -> None:
    error = await puller.rejected(
        *layers(puller.shelf, [[("a.wasm", MODULE)], [("b.wasm", OTHER)], [("readme", b"")]])
    )
    assert error.reason == "AmbiguousModule"
    assert "b.wasm, a.wasm" in str(error)
    assert puller.files == []


async def test_an_image_without_a_module_is_rejected_with_the_remedy(puller: ImagePuller) -> None:
    error = await puller.rejected(*layers(puller.shelf, [[("readme", b"")]]))
    assert error.reason == "ModuleNotFoundInArchive"
    assert str(error).endswith("no layer holds a *.wasm file; add the module as plugin.wasm")


async def test_a_damaged_layer_leaves_nothing(puller: ImagePuller) -> None:
    error = await puller.rejected(
        puller.shelf.add(mediatypes.OCI_LAYER_TAR_GZIP, b"\x1f\x8b\x08 rubbish")
    )
    assert error.reason == "ArchiveInvalid"
    assert puller.files == []


async def test_no_more_layers_are_searched_than_the_limit_allows(puller: ImagePuller) -> None:
    described = layers(puller.shelf, [[("plugin.wasm", MODULE)], [("readme", b"x" * 1000)]])
    puller.limits = Limits(image_bytes=described[1].size)
    error = await puller.rejected(*described)
    assert error.reason == "TooLarge"
    assert len(puller.shelf.downloaded) == 1
    assert puller.files == []


async def test_layers_as_large_together_as_the_limit_are_searched(puller: ImagePuller) -> None:
    described = layers(puller.shelf, [[("plugin.wasm", MODULE)], [("readme", b"x" * 1000)]])
    size = sum(layer.size for layer in described)
    puller.limits = Limits(image_bytes=size - 1)
    assert (await puller.rejected(*described)).reason == "TooLarge"
    puller.limits = Limits(image_bytes=size)
    pulled = await puller.pull(*described)
    assert (pulled.member, pulled.layer) == ("plugin.wasm", described[0])


async def test_all_layers_together_have_one_deadline(puller: ImagePuller) -> None:
    puller.limits = Limits(fetch_timeout=0.05)
    puller.shelf.hangs = True
    with pytest.raises(SourceUnavailable) as caught:
        await puller.pull(*layers(puller.shelf, [[("plugin.wasm", MODULE)]]))
    assert caught.value.reason == "Timeout"


def test_only_the_layer_of_an_artifact_has_the_modules_sha256() -> None:
    shelf = Shelf()
    config = shelf.add(mediatypes.WASM_CONFIG, b"{}")
    sha512 = Descriptor(
        media_type=mediatypes.WASM_CONTENT, digest_text="sha512:" + "0" * 128, size=1
    )
    known = [
        known_sha256(
            choose_layout(
                Manifest(schema_version=2, config=config, layers=(layer,)), limits=Limits()
            )
        )
        for layer in (
            shelf.add(mediatypes.WASM_CONTENT, MODULE),
            shelf.add(mediatypes.OCI_LAYER_TAR, b"x"),
            sha512,
        )
    ]
    assert known == [Digest.of(MODULE).hex, None, None]
