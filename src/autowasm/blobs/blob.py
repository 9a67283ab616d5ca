"""Blob: an open file whose bytes were seen to have its digest.

Not a path: what is served is the file that was checked, whatever the directory holds by now. Invariant: the descriptor
is open as long as anybody has the Blob, and closed when nobody does, so it can never be the number of another file.
"""

import os
import weakref
from dataclasses import dataclass
from typing import NamedTuple, Self

from autowasm.digest import Sha256Hex
from autowasm.net.pools import Closer


class Signature(NamedTuple):
    """What changes when a file's bytes do: as long as it is the same, so are the bytes.

    The kernel sets ctime at every write, rename, and link, and no program can set it back. `links` becomes 0 when the
    file was removed or replaced.
    """

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    links: int

    @classmethod
    def of(cls, fd: int) -> Self:
        """The signature of the open file `fd`: one fstat, which does not block on local file systems."""
        s = os.fstat(fd)
        return cls(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_nlink)


class SyncedFile(NamedTuple):
    """A staged file whose bytes are on the disk: their digest, for as long as the signature is the same."""

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
        """Whether the file is still the one whose digest was checked."""
        return Signature.of(self.fd) == self.signature

    def was_written(self) -> bool:
        """Whether somebody wrote to the open file since. Its names do not matter: it may be evicted while it is sent."""
        found = os.fstat(self.fd)
        known = self.signature
        return (found.st_size, found.st_mtime_ns) != (known.size, known.modified_ns)

    @classmethod
    def adopt(cls, sha256: Sha256Hex, fd: int, signature: Signature, *, closer: Closer) -> Self:
        """Take over `fd`. `closer` closes it: closing a removed file frees its pages, milliseconds for large ones."""
        blob = cls(sha256, fd, signature)
        weakref.finalize(blob, closer.submit, fd)
        return blob
