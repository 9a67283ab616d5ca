"""Streams of unpacked bytes over a file: gzip and zstd, decompressed while they are read, under one limit.

Not a file interface: forward only, with `peek`. Invariants: memory is bounded by the chunk and the zstd window for any
input; nothing unpacks past the limit; every defect of the input is a ContentRejected, never an exception of zlib or zstandard.
"""

import zlib
from typing import BinaryIO, Protocol

import zstandard

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.reasons import Reason

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CHUNK = 64 * 1024
_GZIP_ONLY = 16 + zlib.MAX_WBITS


def archive_invalid(problem: str) -> ContentRejected:
    """The error for an archive that breaks its format."""
    return ContentRejected(
        f"the archive is malformed: {problem}; pack and push it again",
        reason=Reason.ARCHIVE_INVALID,
    )


class ByteSource(Protocol):
    """A source of bytes that is read forwards."""

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; empty only at the end."""


class OutputLimit:
    """Counts packed and unpacked bytes of one archive, and refuses the archive when the output exceeds the limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._packed = 0
        self._unpacked = 0

    def took(self, count: int) -> None:
        """`count` more bytes were read from the file."""
        self._packed += count

    def gave(self, count: int) -> None:
        """`count` more bytes came out of a decompressor. Raises ContentRejected (`ArchiveTooLarge`)."""
        self._unpacked += count
        limits = self._limits
        most = min(
            limits.unpacked_bytes,
            limits.ratio_grace_bytes + limits.unpacked_ratio * self._packed,
        )
        if self._unpacked > most:
            raise ContentRejected(
                f"the archive unpacks to more than {most} bytes from its first {self._packed}: at most "
                f"{limits.unpacked_bytes} in all and {limits.unpacked_ratio} for each packed byte are "
                "accepted; pack only the module",
                reason=Reason.ARCHIVE_TOO_LARGE,
            )


class FileSource:
    """The bytes of a file, counted in the OutputLimit."""

    def __init__(self, file: BinaryIO, output_limit: OutputLimit) -> None:
        self._file = file
        self._output_limit = output_limit

    def read(self, size: int) -> bytes:
        """See ByteSource."""
        data = self._file.read(min(size, _CHUNK))
        self._output_limit.took(len(data))
        return data


class Stream:
    """A source with `peek`."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, which stay unread; fewer at the end."""
        pieces, held = [self._ahead], len(self._ahead)
        while held < size and (more := self._source.read(_CHUNK)):
            pieces.append(more)
            held += len(more)
        self._ahead = b"".join(pieces)
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """See ByteSource."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self._source.read(size)

    def read_exactly(self, size: int, *, what: str) -> bytes:
        """`size` bytes, which the caller has bounded. Raises ContentRejected at an earlier end."""
        data = self.peek(size)
        if len(data) < size:
            raise archive_invalid(f"it ends within {what}")
        self._ahead = self._ahead[size:]
        return data

    def skip(self, size: int, *, what: str) -> None:
        """Skip `size` bytes. Raises ContentRejected at an earlier end."""
        while size > 0:
            data = self.read(min(size, _CHUNK))
            if not data:
                raise archive_invalid(f"it ends within {what}")
            size -= len(data)


class GzipSource:
    """The unpacked bytes of consecutive gzip members (RFC 1952 2.2). Zero bytes after the last one are padding."""

    def __init__(self, source: ByteSource, *, output_limit: OutputLimit, limits: Limits) -> None:
        self._source = source
        self._output_limit = output_limit
        self._members_left = limits.gzip_members
        self._inflate = zlib.decompressobj(_GZIP_ONLY)
        self._packed = b""
        self._within = True
        """Whether the position is within a member."""

    def read(self, size: int) -> bytes:
        """See ByteSource. Raises ContentRejected."""
        while True:
            if not self._packed:
                self._packed = self._source.read(_CHUNK)
            if not self._within and not self._next_member():
                return b""
            at_end = not self._packed
            if data := self._unpack(min(size, _CHUNK)):
                self._output_limit.gave(len(data))
                return data
            if at_end and self._within:
                raise archive_invalid("its gzip data is cut off")

    def _unpack(self, size: int) -> bytes:
        try:
            data = self._inflate.decompress(self._packed, size)
        except zlib.error as error:
            raise archive_invalid(f"its gzip data is damaged ({error})") from error
        if self._inflate.eof:
            self._packed = self._inflate.unused_data
            self._within = False
        else:
            # Even without packed bytes left, zlib may still hold output, which an empty input releases.
            self._packed = self._inflate.unconsumed_tail
        return data

    def _next_member(self) -> bool:
        """Begin the next member if there is one."""
        packed = self._packed.lstrip(b"\0")
        while not packed:
            packed = self._source.read(_CHUNK)
            if not packed:
                return False
            packed = packed.lstrip(b"\0")
        self._packed = packed
        self._members_left -= 1
        if self._members_left < 0:
            raise ContentRejected(
                "the archive has too many gzip members; pack it again in one piece",
                reason=Reason.ARCHIVE_TOO_LARGE,
            )
        self._inflate = zlib.decompressobj(_GZIP_ONLY)
        self._within = True
        return True


class ZstdSource:
    """The unpacked bytes of consecutive zstd frames (RFC 8878 3.1). A cut-off frame ends early and without an error."""

    def __init__(self, source: ByteSource, *, output_limit: OutputLimit, limits: Limits) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=limits.zstd_window_bytes)
        self._reader = decompressor.stream_reader(
            source,  # type: ignore[arg-type] # only read() is used
            read_size=_CHUNK,
            read_across_frames=True,
            closefd=False,
        )
        self._output_limit = output_limit

    def read(self, size: int) -> bytes:
        """See ByteSource. Raises ContentRejected."""
        try:
            data = self._reader.read(min(size, _CHUNK))
        except zstandard.ZstdError as error:
            raise archive_invalid(
                f"its zstd data is damaged or requires too much memory ({error})"
            ) from error
        self._output_limit.gave(len(data))
        return data


def is_compressed(head: bytes) -> bool:
    """Whether `head`, 4 or more bytes, begins a gzip or zstd stream."""
    return head.startswith(GZIP_MAGIC) or _is_zstd(head)


def _is_zstd(head: bytes) -> bool:
    """Whether a zstd frame begins here, or a skippable one (0x184D2A5?), which pzstd puts first."""
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    return head.startswith(ZSTD_MAGIC) or skippable


def decompressed(stream: Stream, *, output_limit: OutputLimit, limits: Limits) -> Stream:
    """The unpacked stream if `stream` begins as gzip or zstd, else `stream` itself."""
    head = stream.peek(4)
    if head.startswith(GZIP_MAGIC):
        return Stream(GzipSource(stream, output_limit=output_limit, limits=limits))
    if _is_zstd(head):
        return Stream(ZstdSource(stream, output_limit=output_limit, limits=limits))
    return stream
