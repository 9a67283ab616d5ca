"""ImageSource: modules from OCI registries, and pull_module, which finds and downloads the module of a resolved image.

The protocol is in `registry/`, the choice of a layer in `registry/layouts.py`, the check of the module in `wasm/module.py`.
`wasmer` and `wasmc` both use it. Invariants: the resolved manifest is fetched by digest, even if the tag has moved since; for an artifact, only its
one content layer is downloaded; for an image, layers from the last to the first, and none after the one that has `plugin.wasm` or `filter.wasm`; a
file that a later layer deletes is not found; at most two layers are on disk at a time.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import RegistrySource, Source
from autowasm.artifacts.source import Pinned, SourceKey
from autowasm.digest import HashedFile, Sha256Hex, sha256_of
from autowasm.errors import ContentRejected, SourceNotFound, SourceUnavailable, SpecError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.reference import ImageReference
from autowasm.registry.client import RegistryClient, ResolvedImage
from autowasm.registry.credentials import ANONYMOUS_FINGERPRINT, Credential
from autowasm.registry.layouts import LayerCandidate, Layout, choose_layout
from autowasm.registry.manifest import Descriptor
from autowasm.text import listed
from autowasm.units import format_size
from autowasm.wasm.archive import ArchiveMember, choose_member, extract_member
from autowasm.wasm.imagelayer import Hidden, clean_path, read_layer
from autowasm.wasm.module import too_large

OnBytes = Callable[[int], None]

_PREFERRED: Final = frozenset({"plugin.wasm", "filter.wasm"})
"""`choose_member` prefers these to all others, so a layer that has one ends the search."""


@dataclass(frozen=True, slots=True)
class PulledModule:
    """The written module. `member` is the name in the image, empty for an artifact."""

    sha256: Sha256Hex
    member: str
    layer: Descriptor | None = field(default=None, compare=False)
    """The layer that held it."""
    file: HashedFile | None = field(default=None, compare=False)
    """The written file, if its bytes were hashed while they were written."""


def known_sha256(layout: Layout) -> Sha256Hex | None:
    """The module's sha256 if the manifest has it: the layer is the module itself, and its digest is a sha256."""
    if layout.kind != "artifact":
        return None
    (content,) = layout.candidates
    digest = content.descriptor.digest
    return Sha256Hex(digest.hex) if digest.algorithm == "sha256" else None


async def pull_module(
    client: RegistryClient,
    reference: ImageReference,
    resolved: ResolvedImage,
    destination: Path,
    *,
    credential: Credential | None,
    limits: Limits,
    pools: Pools,
    workdir: Path,
    on_bytes: OnBytes | None = None,
) -> PulledModule:
    """Write the module of `resolved` to `destination` (overwritten).

    Meanwhile the layers of an image are in `workdir`, under names that begin with the destination's. `on_bytes` is that of
    `RegistryClient.download`. It takes at most `limits.fetch_timeout`. Raises the errors of `choose_layout`,
    `RegistryClient.download` and `wasm.archive`, and ContentRejected (`ModuleNotFoundInArchive`, `AmbiguousModule`,
    `TooLarge`). After an error the caller must remove a partial file at `destination`.
    """
    layout = choose_layout(resolved.manifest, limits=limits)
    puller = _Puller(
        client, reference, credential=credential, limits=limits, pools=pools, on_bytes=on_bytes
    )
    try:
        async with asyncio.timeout(limits.fetch_timeout):
            if layout.kind == "artifact":
                (content,) = layout.candidates
                member, layer = "", content.descriptor
                file = await puller.take(content, destination)
            else:
                found, file = await puller.search(layout.candidates, destination, workdir=workdir)
                member, layer = found.member.name, found.candidate.descriptor
    except TimeoutError as error:
        raise SourceUnavailable(
            f"image {reference}: not finished within {limits.fetch_timeout:g} s",
            reason=Reason.TIMEOUT,
        ) from error
    sha256 = file.sha256 if file else await pools.disk.run(sha256_of, destination)
    return PulledModule(sha256, member, layer, file)


@dataclass(frozen=True, slots=True)
class _Found:
    """A module in a layer that has been downloaded."""

    layer: Path
    candidate: LayerCandidate
    member: ArchiveMember


@dataclass(frozen=True, slots=True)
class _Puller:
    client: RegistryClient
    reference: ImageReference
    credential: Credential | None
    limits: Limits
    pools: Pools
    on_bytes: OnBytes | None

    async def take(self, candidate: LayerCandidate, destination: Path) -> HashedFile | None:
        """Download a layer that is the module."""
        size = candidate.descriptor.size
        if size > self.limits.module_bytes:
            raise too_large(size, limits=self.limits)
        return await self._download(candidate, destination)

    async def search(
        self, candidates: tuple[LayerCandidate, ...], destination: Path, *, workdir: Path
    ) -> "tuple[_Found, HashedFile]":
        """Find the module in tar layers and copy it out."""
        async with contextlib.AsyncExitStack() as layers:
            found = await self._find(candidates, layers, workdir / destination.name)
            file = await self.pools.parsing.run(
                extract_member,
                found.layer,
                destination,
                packing=found.candidate.packing.value,
                member=found.member,
                limits=self.limits,
            )
        return found, file

    async def _find(
        self, candidates: tuple[LayerCandidate, ...], layers: contextlib.AsyncExitStack, stem: Path
    ) -> _Found:
        others: list[_Found] = []
        hidden = Hidden(limits=self.limits)
        searched = 0
        for number, candidate in enumerate(candidates):
            searched += candidate.descriptor.size
            self._check_searched(searched)
            path = stem.with_name(f"{stem.name}.layer{number}")
            async with contextlib.AsyncExitStack() as this_layer:
                await this_layer.enter_async_context(self._removed(path))
                await self._download(candidate, path)
                members = await self._read(candidate, path, hidden)
                if any(_base_name(member) in _PREFERRED for member in members):
                    layers.push_async_exit(this_layer.pop_all())
                    return _Found(path, candidate, choose_member(members))
                if members and not others:
                    layers.push_async_exit(this_layer.pop_all())
                others += [_Found(path, candidate, member) for member in members]
        return _only(others, hidden, self.reference)

    async def _read(
        self, candidate: LayerCandidate, path: Path, hidden: Hidden
    ) -> list[ArchiveMember]:
        """The layer's modules that the layers above leave visible. Adds the files that this layer hides to those hidden."""
        layer = await self.pools.parsing.run(
            read_layer, path, packing=candidate.packing.value, limits=self.limits
        )
        members = hidden.visible(layer)
        hidden.add(layer)
        return members

    def _check_searched(self, searched: int) -> None:
        if searched > self.limits.image_bytes:
            raise ContentRejected(
                f"image {self.reference}: no plugin.wasm in the last "
                f"{format_size(self.limits.image_bytes)} of its layers; put the module into the last layer",
                reason=Reason.TOO_LARGE,
            )

    async def _download(self, candidate: LayerCandidate, destination: Path) -> HashedFile | None:
        return await self.client.download(
            self.reference,
            candidate.descriptor,
            destination,
            credential=self.credential,
            on_bytes=self.on_bytes,
        )

    @contextlib.asynccontextmanager
    async def _removed(self, path: Path) -> AsyncIterator[None]:
        """Remove the file at `path` at exit."""
        try:
            yield
        finally:
            await self.pools.disk.run(path.unlink, missing_ok=True)


def _only(found: list[_Found], hidden: Hidden, reference: ImageReference) -> _Found:
    if not found:
        gone = f" (a later layer deletes {listed(hidden.deleted)})" if hidden.deleted else ""
        raise ContentRejected(
            f"image {reference}: no layer holds a *.wasm file{gone}; add the module as plugin.wasm",
            reason=Reason.MODULE_NOT_FOUND_IN_ARCHIVE,
        )
    if len(found) > 1:
        names = [clean_path(each.member.name) for each in found]
        raise ContentRejected(
            f"image {reference}: {len(found)} modules found ({listed(names)}): "
            "name the intended one plugin.wasm",
            reason=Reason.AMBIGUOUS_MODULE,
        )
    (only,) = found
    return only


def _base_name(member: ArchiveMember) -> str:
    return clean_path(member.name).rpartition("/")[2]


class ImageSource:
    """`spec.filter.source.registry`."""

    kind = "registry"

    def __init__(self, client: RegistryClient, *, limits: Limits, pools: Pools) -> None:
        self._client = client
        self._limits = limits
        self._pools = pools

    def key(self, source: Source, credential: Credential | None) -> SourceKey:
        """By host, repository and credential, so that a tenant's wrong password does not affect another tenant."""
        reference = _reference(source)
        fingerprint = credential.fingerprint if credential else ANONYMOUS_FINGERPRINT
        return SourceKey(reference.host, reference.repository, fingerprint)

    async def resolve(self, source: Source, *, credential: Credential | None) -> Pinned:
        """Requests one or two manifests: the named one, and its runnable child if it is an index."""
        return await self._pinned(_reference(source), credential)

    async def has_moved(
        self, source: Source, known: Record, *, credential: Credential | None
    ) -> bool | None:
        """HEAD of the manifest. None if the registry sends no digest, or does not support HEAD (some answer 404 or 405 then)."""
        reference = _reference(source)
        try:
            digest = await self._client.head(reference, credential=credential)
        except SourceNotFound:
            return None  # the GET of a fetch decides, and has the registry's message
        except SourceUnavailable as error:
            if error.reason != Reason.UNEXPECTED_ANSWER:
                raise
            return None
        return None if digest is None else str(reference.pinned(digest)) != known.image

    async def pin(self, record: Record, *, credential: Credential | None) -> Pinned:
        """The manifest that the record names, by digest."""
        try:
            reference = ImageReference.parse(record.image)
        except ValueError as error:
            raise SpecError("status.module.image", str(error)) from error
        return await self._pinned(reference, credential)

    async def _pinned(self, reference: ImageReference, credential: Credential | None) -> Pinned:
        resolved = await self._client.resolve(reference, credential=credential)
        layout = choose_layout(resolved.manifest, limits=self._limits)
        return Pinned(
            image=str(reference.pinned(resolved.digest)),
            sha256=known_sha256(layout),
            size=layout.candidates[0].descriptor.size if layout.kind == "artifact" else None,
            handle=resolved,
        )

    async def fetch(
        self,
        pinned: Pinned,
        destination: Path,
        *,
        workdir: Path,
        credential: Credential | None,
        on_bytes: Callable[[int], None],
    ) -> Pinned:
        """Download the layers that may hold the module, and write it to `destination`."""
        resolved = cast(ResolvedImage, pinned.handle)  # set by `_pinned`
        pulled = await pull_module(
            self._client,
            ImageReference.parse(pinned.image),
            resolved,
            destination,
            credential=credential,
            limits=self._limits,
            pools=self._pools,
            workdir=workdir,
            on_bytes=on_bytes,
        )
        return dataclasses.replace(pinned, sha256=pulled.sha256, file=pulled.file)


def _reference(source: Source) -> ImageReference:
    return ImageReference.parse(cast(RegistrySource, source.registry).image)
