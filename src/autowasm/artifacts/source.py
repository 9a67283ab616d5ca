"""Values of a fetch: the request, the resolved content, and the interface between the fetcher and each kind of source.

The fetcher is in `fetcher.py`, the sources in `image.py` and `object.py`. Invariant: a `Pinned` names content that cannot
change, or has the validators that reveal a change.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import Source
from autowasm.digest import HashedFile, Sha256Hex
from autowasm.registry.credentials import Credential


@dataclass(frozen=True, slots=True)
class SourceKey:
    """Failures are counted for each key (ADR 11)."""

    host: str
    repository: str
    """Repository of an image, path of an object."""
    credential: str
    """Fingerprint of the credential; for an object, of its URL's query."""


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """The module that an AutoWasm needs. With a `record`: exactly that content, without resolving anything (ADR 7)."""

    namespace: str
    source: Source
    secret: str | None = None
    expected: Sha256Hex | None = None
    record: Record | None = None
    owner: str = field(default="", compare=False)
    """The AutoWasm's key as text. The module replaces the one that it has published already."""
    known: Record | None = None
    """The last result for the same source, used again if the server answers "unchanged"."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """The content to which a source resolved, before its bytes are fetched."""

    image: str = ""
    """`host/repository@sha256:…`."""
    url: str = ""
    etag: str = ""
    last_modified: str = ""
    hosts: tuple[str, ...] | None = None
    """Hosts that redirects may lead to, by the namespace's policy; None: any."""
    unchanged: bool = False
    """The server answered that the object is unchanged: nothing was written."""
    sha256: Sha256Hex | None = None
    """The module's digest, if it is promised (a raw layer's own) or known; None: hash the bytes."""
    size: int | None = field(default=None, compare=False)
    """The module's bytes, if known before they are fetched."""
    handle: object = field(default=None, compare=False)
    """Passed back to the source in `fetch`; opaque to all other code."""
    file: HashedFile | None = field(default=None, compare=False)
    """Of fetched content: the written file, if its bytes were hashed while they were written."""

    @property
    def content_key(self) -> str:
        """Equal keys mean equal bytes; empty if nothing promises that (an object without validators)."""
        if self.image:
            return self.image
        if self.etag or self.last_modified:
            return f"{self.url} {self.etag} {self.last_modified}"
        return ""

    def record(
        self, source: Source, *, sha256: Sha256Hex, size: int, abi: str, secret_uid: str
    ) -> Record:
        """The record of `source` that resolved to this content, whose module has `sha256`, `size` bytes and this ABI version."""
        return Record(
            source=str(source),
            sha256=sha256,
            size=size,
            abi=abi,
            image=self.image,
            url=self.url,
            etag=self.etag,
            last_modified=self.last_modified,
            secret_uid=secret_uid,
        )


class ModuleSource(Protocol):
    """One kind of source. Its expected errors are the classes of `autowasm.errors`."""

    kind: str
    """Metric label: `registry` or `object`."""

    def key(self, source: Source, credential: Credential | None) -> SourceKey:
        """The key under which this source's failures are counted."""

    async def resolve(self, source: Source, *, credential: Credential | None) -> Pinned:
        """Ask the server for the content that the source names now. This also proves that this credential may read it."""

    async def has_moved(
        self, source: Source, known: Record, *, credential: Credential | None
    ) -> bool | None:
        """Whether the source now names content other than `known`. Sends as few requests as possible.

        None if only a fetch can find out.
        """

    async def pin(self, record: Record, *, credential: Credential | None) -> Pinned:
        """The content that a record names, for `fetch`."""

    async def fetch(
        self,
        pinned: Pinned,
        destination: Path,
        *,
        workdir: Path,
        credential: Credential | None,
        on_bytes: Callable[[int], None],
    ) -> Pinned:
        """Write the raw module bytes to `destination`; `workdir` is for temporary files.

        Returns what was fetched: an object may have changed since it was resolved.
        """
