"""ImageSource: a ModuleSource over OCI registries.

Not the protocol (`registry/`) and not the choice of a layer (`registry/layouts.py`, `unpack.py`). Invariant: what is fetched
is the manifest that was resolved, by digest, whatever the tag has come to name since.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import RegistrySource, Source
from autowasm.artifacts.source import Pinned, SourceKey
from autowasm.artifacts.unpack import known_sha256, pull_module
from autowasm.errors import SourceNotFound, SourceUnavailable, SpecError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.client import RegistryClient, ResolvedImage
from autowasm.registry.credentials import ANONYMOUS_FINGERPRINT, Credential
from autowasm.registry.layouts import choose_layout


class ImageSource:
    """`spec.filter.source.registry`."""

    kind = "registry"

    def __init__(self, client: RegistryClient, *, limits: Limits, pools: Pools) -> None:
        self._client = client
        self._limits = limits
        self._pools = pools

    def key(self, source: Source, credential: Credential | None) -> SourceKey:
        """By host, repository and credential: one tenant's wrong password says nothing about another's right one."""
        reference = _reference(source)
        fingerprint = credential.fingerprint if credential else ANONYMOUS_FINGERPRINT
        return SourceKey(reference.host, reference.repository, fingerprint)

    async def resolve(self, source: Source, *, credential: Credential | None) -> Pinned:
        """One or two manifests: the one that is named, and its runnable child if it is an index."""
        return await self._pinned(_reference(source), credential)

    async def has_moved(
        self, source: Source, known: Record, *, credential: Credential | None
    ) -> bool | None:
        """HEAD of the manifest. None where the registry announces no digest, or answers no HEAD: some say 404 or 405 then."""
        reference = _reference(source)
        try:
            digest = await self._client.head(reference, credential=credential)
        except SourceNotFound:
            return None  # the GET of a fetch says whether that is true, and what the registry says of it
        except SourceUnavailable as error:
            if error.reason != "UnexpectedAnswer":
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
        """Download the layers that may hold the module, and put it at `destination`."""
        resolved = cast(ResolvedImage, pinned.handle)  # `_pinned` put it there
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
        return dataclasses.replace(pinned, sha256=pulled.sha256)


def _reference(source: Source) -> ImageReference:
    return ImageReference.parse(cast(RegistrySource, source.registry).image)
