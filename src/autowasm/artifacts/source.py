"""What a fetch is asked for, what a resolution gives, and the seam between the fetcher and each kind of source.

Not the fetching itself (`fetcher.py`) nor a protocol (`image.py`, `object.py`). Invariant: a `Pinned` names content that
cannot change, or carries the validators by which a change is noticed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import Source
from autowasm.digest import Sha256Hex
from autowasm.registry.credentials import Credential


@dataclass(frozen=True, slots=True)
class SourceKey:
    """Failures are kept apart by this key (ADR 11)."""

    host: str
    repository: str
    """Repository of an image, path of an object."""
    credential: str
    """Fingerprint of the credential; of an object, of its URL's query."""


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What an AutoWasm needs. `record` given: exactly that content, without resolving anything (ADR 7)."""

    namespace: str
    source: Source
    secret: str | None = None
    expected: Sha256Hex | None = None
    record: Record | None = None
    owner: str = field(default="", compare=False)
    """The AutoWasm's key as text: what it has published already will be replaced."""
    known: Record | None = None
    """What the same source resolved to last: where the server says "unchanged", it is the answer again."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a source resolved to, before its bytes are here."""

    image: str = ""
    """`host/repository@sha256:…`."""
    url: str = ""
    etag: str = ""
    last_modified: str = ""
    hosts: tuple[str, ...] | None = None
    """Hosts that redirects may lead to, by the namespace's policy; None: any."""
    unchanged: bool = False
    """The server holds what it held: nothing was written."""
    sha256: Sha256Hex | None = None
    """The module's digest, where somebody has promised it (a raw layer's own) or it is known; None: hash the bytes."""
    size: int | None = field(default=None, compare=False)
    """The module's bytes, where that can be known before they are here."""
    handle: object = field(default=None, compare=False)
    """What the source wants back in `fetch`; opaque to everyone else."""

    @property
    def content_key(self) -> str:
        """Equal keys mean equal bytes; empty where nothing promises that (an object without validators)."""
        if self.image:
            return self.image
        if self.etag or self.last_modified:
            return f"{self.url} {self.etag} {self.last_modified}"
        return ""


class ModuleSource(Protocol):
    """One kind of source. Raises the classes of `autowasm.errors` and nothing else that is expected."""

    kind: str
    """Metric label: `registry` or `object`."""

    def key(self, source: Source, credential: Credential | None) -> SourceKey:
        """Whose failures this source shares."""

    async def resolve(self, source: Source, *, credential: Credential | None) -> Pinned:
        """Ask the server what the source names now: proof, too, that this credential may have it."""

    async def has_moved(
        self, source: Source, known: Record, *, credential: Credential | None
    ) -> bool | None:
        """Whether the source names other content than `known`, asked as cheaply as can be; None: only a fetch tells."""

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
        """Write the raw module bytes to `destination`; `workdir` is for what is needed on the way.

        Returns what was really fetched: an object may have changed since it was resolved.
        """
