"""`wasmc inspect --compat`: whether other consumers could read an image or a file.

Invariant: only the last layers that those consumers would open are downloaded. The rules for images are in
`registry/consumers.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autowasm.cli.registries import RegistryConnection
from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.registry import mediatypes
from autowasm.registry.client import ResolvedImage
from autowasm.registry.consumers import ConsumerVerdict, LastLayer, answers, index_child
from autowasm.registry.layouts import CONSUMERS, ENVOY_GATEWAY, ISTIO, KWCTL, WASMER
from autowasm.registry.manifest import Descriptor, Manifest
from autowasm.wasm.archive import extract_member, opened_archive
from autowasm.wasm.binary import MAGIC
from autowasm.wasm.imagelayer import read_layer

OTHERS: Final = tuple(name for name in CONSUMERS if name != WASMER)
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_OPENED: Final = frozenset({mediatypes.OCI_LAYER_TAR_GZIP, mediatypes.DOCKER_LAYER_TAR_GZIP})
_LEAST: Final = 8
"""Minimum size of a module in bytes, as in Istio."""


def consumer_of(flag: str) -> str:
    """The consumer for a choice of `--require`."""
    return next(name for name in OTHERS if name.lower().replace(" ", "-") == flag)


@dataclass(frozen=True, slots=True)
class Images:
    """The consumers' verdicts on one image. Layers are downloaded to `workdir`."""

    connection: RegistryConnection
    limits: Limits
    pools: Pools
    workdir: Path

    async def answers(self, resolved: ResolvedImage) -> Mapping[str, ConsumerVerdict]:
        """The verdicts by the consumer's name, without wasmer."""
        if resolved.index is None:
            return answers(resolved.manifest, await self._last_layer(resolved.manifest))
        found: dict[str, ConsumerVerdict] = {}
        verdicts: dict[str, Mapping[str, ConsumerVerdict] | ConsumerVerdict] = {}
        for consumer in OTHERS:
            child = index_child(consumer, resolved.index)
            if isinstance(child, ConsumerVerdict):
                found[consumer] = child
                continue
            if child.digest_text not in verdicts:
                verdicts[child.digest_text] = await self._of_child(child, resolved)
            answer = verdicts[child.digest_text]
            found[consumer] = answer if isinstance(answer, ConsumerVerdict) else answer[consumer]
        return found

    async def _of_child(
        self, child: Descriptor, resolved: ResolvedImage
    ) -> Mapping[str, ConsumerVerdict] | ConsumerVerdict:
        if child.digest == resolved.child:
            manifest = resolved.manifest
        else:
            reference = self.connection.reference.pinned(child.digest)
            try:
                image = await self.connection.client.resolve(
                    reference, credential=self.connection.credential
                )
            except ContentRejected as error:
                return ConsumerVerdict(reads=False, why=f"selects the linux/amd64 entry: {error}")
            manifest = image.manifest
        return answers(manifest, await self._last_layer(manifest))

    async def _last_layer(self, manifest: Manifest) -> LastLayer | None:
        layers = manifest.layers or ()
        if not layers or layers[-1].media_type not in _OPENED:
            return None
        path = self.workdir / "last-layer"
        try:
            await self.connection.client.download(
                self.connection.reference,
                layers[-1],
                path,
                credential=self.connection.credential,
            )
        except ContentRejected:
            return LastLayer(is_gzip=True, plugin=None)  # too large for every consumer
        return await self.pools.parsing.run(_open_last, path, limits=self.limits)


def _open_last(path: Path, *, limits: Limits) -> LastLayer:
    """Blocks."""
    if not _head(path).startswith(_GZIP):
        return LastLayer(is_gzip=False, plugin=None)
    try:
        plugin = read_layer(path, packing="tar+gzip", limits=limits).first_plugin
        if plugin is None:
            return LastLayer(is_gzip=True, plugin=None)
        target = path.with_name("first-plugin")
        extract_member(path, target, packing="tar+gzip", member=plugin, limits=limits)
    except ContentRejected:
        return LastLayer(is_gzip=True, plugin=None)
    return LastLayer(is_gzip=True, plugin=_is_module(_head(target)))


def of_file(path: Path, *, member: str, limits: Limits) -> dict[str, ConsumerVerdict]:
    """The consumers that could load the file from a URL. `member`: the module's name in the archive. Blocks.

    Istio and Envoy Gateway unpack gzip and tar in turn, and take the first entry of a tar (`pkg/wasm/httpfetcher.go`).
    """
    head = _head(path)
    found = dict.fromkeys(OTHERS, ConsumerVerdict(reads=False, why="pulls from registries only"))
    bare = _is_module(head)
    found[KWCTL] = ConsumerVerdict(
        reads=bare,
        why=""
        if bare
        else "requires a bare module at the URL, neither compressed nor in an archive",
    )
    if head.startswith(_ZSTD):
        mesh = ConsumerVerdict(reads=False, why="unpacks gzip and tar, not zstd")
    elif not member or _first_is_module(path, limits=limits):
        mesh = ConsumerVerdict(reads=True)
    else:
        mesh = ConsumerVerdict(
            reads=False, why="takes the first entry of a tar archive, which is not the module"
        )
    found[ISTIO] = found[ENVOY_GATEWAY] = mesh
    return found


def _first_is_module(path: Path, *, limits: Limits) -> bool:
    try:
        with opened_archive(path, packing="tar", limits=limits) as reader:
            entry = reader.next()
            return entry is not None and _is_module(reader.read(_LEAST))
    except ContentRejected:
        return False


def _is_module(head: bytes) -> bool:
    return len(head) >= _LEAST and head.startswith(MAGIC)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LEAST)
