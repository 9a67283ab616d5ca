"""Blob: an open file whose bytes have been verified against its digest.

It is not a path: the verified file is served, regardless of the current content of the directory. Invariant: the descriptor is open as
long as a reference to the Blob exists, and is closed afterwards, so it is never the number of another file.
"""

import os
import weakref
from dataclasses import dataclass
from typing import NamedTuple, Self

from autowasm.digest import Sha256Hex, Signature
from autowasm.net.pools import Closer


class SyncedFile(NamedTuple):
    """A staged file that is synced to disk. Its digest is valid while the signature is the same."""

    sha256: Sha256Hex
    signature: Signature


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Blob:
    """A module's bytes, ready to send: `size` bytes from the start of descriptor `fd`."""

    sha256: Sha256Hex
    fd: int
    signature: Signature

    @property
    def size(self) -> int:
        """Bytes."""
        return self.signature.size

    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was verified."""
        return Signature.of(self.fd) == self.signature

    def was_written(self) -> bool:
        """Whether the open file was written since it was verified. Its links do not count: it may be evicted while it is sent."""
        found = os.fstat(self.fd)
        known = self.signature
        return (found.st_size, found.st_mtime_ns) != (known.size, known.modified_ns)

    @classmethod
    def adopt(cls, sha256: Sha256Hex, fd: int, signature: Signature, *, closer: Closer) -> Self:
        """Take over `fd`. `closer` closes it: closing a removed file frees its pages, which takes milliseconds for a large file."""
        blob = cls(sha256, fd, signature)
        weakref.finalize(blob, closer.submit, fd)
        return blob
