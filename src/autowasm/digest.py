"""Digest values (`sha256:<hex>`), the incremental verification of bytes against one, and files whose bytes were hashed.

sha256 identifies modules everywhere (ADR 4); sha512 is supported only because OCI allows it for manifests and layers.
Invariants: every `Digest` and `Sha256Hex` is well formed, lower case, and safe as a file name and in a URL path; bytes that were
hashed while they were written are trusted only while the file keeps the signature that it had after the last write; everything
else is hashed from the disk.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NewType, Self

from autowasm.errors import ContentRejected
from autowasm.reasons import Reason

Sha256Hex = NewType("Sha256Hex", str)
"""64 lower-case hexadecimal digits: the identity of a module."""

_HEX_LENGTHS = {"sha256": 64, "sha512": 128}
_SHA256_HEX = re.compile(r"[0-9a-f]{64}\Z")
_HEX = re.compile(r"[0-9a-f]+\Z")


def sha256_hex(text: str) -> Sha256Hex:
    """Check that `text` is 64 lower-case hex digits. Raises ValueError."""
    if not _SHA256_HEX.match(text):
        raise ValueError(f"not 64 lower-case hexadecimal digits: {text[:80]!r}")
    return Sha256Hex(text)


def sha256_of(path: Path) -> Sha256Hex:
    """The identity of the module in the file `path`. Blocks; raises OSErrors."""
    with path.open("rb") as file:
        return Sha256Hex(hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True, slots=True)
class Digest:
    """`algorithm:hex` as in the OCI image specification, descriptor.md "Digests"."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `sha256:<64 hex>` or `sha512:<128 hex>`, lower case only. Raises ValueError."""
        algorithm, separator, hex_digits = text.partition(":")
        length = _HEX_LENGTHS.get(algorithm)
        if not separator or length is None:
            raise ValueError(f"not a digest (expected sha256:<64 hex digits>): {text[:160]!r}")
        if len(hex_digits) != length or not _HEX.match(hex_digits):
            raise ValueError(
                f"a {algorithm} digest has {length} lower-case hexadecimal digits: {text[:160]!r}"
            )
        return cls(algorithm, hex_digits)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The sha256 digest of `data`."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class DigestVerifier:
    """Counts and hashes bytes as they arrive; `finish` compares them with the expected digest and size.

    `size` in bytes, None if it is not known. Bytes beyond `size` are refused as soon as they arrive.
    """

    def __init__(self, expected: Digest, *, size: int | None, what: str) -> None:
        self._expected = expected
        self._size = size
        self._what = what
        self._hash = hashlib.new(expected.algorithm)
        self.received = 0

    def update(self, chunk: bytes | memoryview) -> None:
        """Add the next bytes. Raises ContentRejected (`SizeMismatch`) on the first byte too many."""
        self.received += len(chunk)
        if self._size is not None and self.received > self._size:
            raise ContentRejected(
                f"{self._what}: the server sent more than the {self._size} bytes that it announced",
                reason=Reason.SIZE_MISMATCH,
            )
        self._hash.update(chunk)

    def finish(self) -> None:
        """Raises ContentRejected: `SizeMismatch` if bytes are missing, `DigestMismatch` if the digest differs."""
        if self._size is not None and self.received != self._size:
            raise ContentRejected(
                f"{self._what}: {self.received} bytes arrived, but {self._size} were announced",
                reason=Reason.SIZE_MISMATCH,
            )
        if self._hash.hexdigest() != self._expected.hex:
            raise ContentRejected(
                f"{self._what}: the bytes have {self._expected.algorithm}:{self._hash.hexdigest()}, "
                f"not {self._expected}; they were changed in the registry or in transit",
                reason=Reason.DIGEST_MISMATCH,
            )


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
