"""HashedFile: a file whose bytes were hashed, and the signature that tells whether they are still the same.

Invariant: bytes that were hashed while they were written are trusted only as long as the file has the signature that it had
after the last write; everything else is hashed from the disk.
"""

import os
from typing import NamedTuple, Self

from autowasm.digest import Sha256Hex


class Signature(NamedTuple):
    """Identity of a file's content: while the signature is the same, the bytes are the same.

    The kernel sets ctime at every write, rename, and link, and no program can reset it. `links` becomes 0 when the file is
    removed or replaced.
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


class HashedFile(NamedTuple):
    """A file of which every byte was hashed. The digest is valid while the signature is the same."""

    sha256: Sha256Hex
    signature: Signature
