"""Copies an image or index from one repository to another, in any registry.

Invariants: manifests are copied byte for byte, so digests stay; the contents of a manifest reach the destination before it does; a
blob is verified while it is downloaded; one blob at a time is on this machine's disk.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autowasm.digest import Digest
from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.reference import ImageReference
from autowasm.registry import mediatypes
from autowasm.registry.client import OnBytes, RegistryClient
from autowasm.registry.credentials import Credential
from autowasm.registry.manifest import Descriptor, ImageIndex, Manifest, parse_manifest
from autowasm.registry.package import Layer

_MAX_DEPTH: Final = 3
"""Indexes in an index. Known tools make one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A reference, with the client and the login for it."""

    client: RegistryClient
    reference: ImageReference
    credential: Credential | None


class Copier:
    """One copy. `workdir` is a folder for the blobs on their way."""

    def __init__(
        self,
        source: Endpoint,
        destination: Endpoint,
        *,
        workdir: Path,
        limits: Limits,
        pools: Pools,
        on_bytes: OnBytes,
    ) -> None:
        self._source = source
        self._destination = destination
        self._workdir = workdir
        self._limits = limits
        self._pools = pools
        self._on_bytes = on_bytes
        self._done: set[Digest] = set()

    async def copy(self) -> Digest:
        """Returns the digest of the copy. Raises the errors of `RegistryClient.download` and `RegistryClient.push`."""
        return await self._manifest(self._source.reference, self._destination.reference, depth=0)

    async def _manifest(
        self, source: ImageReference, target: ImageReference, *, depth: int
    ) -> Digest:
        answer = await self._source.client.get_manifest(source, credential=self._source.credential)
        try:
            document = parse_manifest(answer.data, answer.media_type, limits=self._limits)
        except ContentRejected as error:
            raise ContentRejected(f"image {source}: {error}", reason=error.reason) from error
        if isinstance(document, ImageIndex):
            if depth >= _MAX_DEPTH:
                raise ContentRejected(
                    f"image {source}: more than {_MAX_DEPTH} indexes in each other",
                    reason=Reason.MANIFEST_INVALID,
                )
            for child in document.manifests or ():
                if child.digest not in self._done:
                    await self._manifest(
                        source.pinned(child.digest), target.pinned(child.digest), depth=depth + 1
                    )
        else:
            for descriptor in (*(document.layers or ()), document.config):
                await self._blob(descriptor)
        digest = Digest.of(answer.data)
        if target.digest is not None:  # pinned with an algorithm of its own
            digest = target.digest
        self._done.add(digest)
        media_type = document.media_type or answer.media_type or _usual_type(document)
        await self._destination.client.put_manifest(
            target, answer.data, media_type=media_type, credential=self._destination.credential
        )
        return digest

    async def _blob(self, descriptor: Descriptor) -> None:
        if descriptor.digest in self._done:
            return
        source, destination = self._source, self._destination
        if not await destination.client.has_blob(
            destination.reference, descriptor, credential=destination.credential
        ):
            file = self._workdir / "blob"
            await source.client.download(
                source.reference,
                descriptor,
                file,
                credential=source.credential,
                on_bytes=self._on_bytes,
            )
            layer = Layer(descriptor.media_type, descriptor.digest, descriptor.size, file)
            await destination.client.upload(
                destination.reference, layer, credential=destination.credential
            )
            await self._pools.disk.run(file.unlink)
        self._done.add(descriptor.digest)


def _usual_type(document: Manifest | ImageIndex) -> str:
    return mediatypes.OCI_INDEX if isinstance(document, ImageIndex) else mediatypes.OCI_MANIFEST
