"""What one fetch carries through its steps, and what was promised about its outcome.

Not the steps (`fetcher.py`). Invariant: a promise is checked for each request by itself, never for a flight that several
share.
"""

from dataclasses import dataclass
from typing import Final

from autowasm.api.record import Record
from autowasm.artifacts.pullsecrets import Access
from autowasm.artifacts.source import FetchRequest, ModuleSource, Pinned, SourceKey
from autowasm.digest import Sha256Hex
from autowasm.errors import ContentRejected
from autowasm.registry.credentials import Credential

DAMAGED_ON_THE_WAY: Final = frozenset({"DigestMismatch", "SizeMismatch"})
"""Reasons that say nothing about the content itself: the next try may bring the right bytes."""


@dataclass(frozen=True, slots=True)
class Module:
    """What is known of bytes that are, or were, in the store."""

    sha256: Sha256Hex
    size: int
    abi: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of `fetch`, with what every step of it needs."""

    request: FetchRequest
    source: ModuleSource
    access: Access
    key: SourceKey

    @property
    def credential(self) -> Credential | None:
        """What is shown to the source."""
        return self.access.credential

    def record(self, pinned: Pinned, module: Module) -> Record:
        """What its source resolved to."""
        return Record(
            source=str(self.request.source),
            sha256=module.sha256,
            size=module.size,
            abi=module.abi,
            image=pinned.image,
            url=pinned.url,
            etag=pinned.etag,
            last_modified=pinned.last_modified,
            secret_uid=self.access.secret_uid,
        )


def check_promised(request: FetchRequest, module: Module) -> None:
    """Raises ContentRejected (`DigestMismatch`, `Sha256Mismatch`) if the module is not what the request was promised."""
    record = request.record
    if record is not None and record.sha256 != module.sha256:
        raise ContentRejected(
            f"{record.origin} held sha256:{record.sha256} when it was published and holds "
            f"sha256:{module.sha256} now",
            reason="DigestMismatch",
        )
    if request.expected is not None and request.expected != module.sha256:
        raise ContentRejected(
            f"spec.filter.sha256: the module has sha256 {module.sha256}, not {request.expected}; "
            "it is not used",
            reason="Sha256Mismatch",
        )
