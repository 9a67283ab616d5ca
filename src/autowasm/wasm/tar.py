"""A tar reader for one member of an archive: forward only, one header at a time.

Not `tarfile`, which (in the Pythons we support) reads a whole extension header into memory whatever its size, goes
backwards without end for a negative size (CVE-2025-8194), and takes quadratic time over crafted headers (CVE-2024-6232).
Invariants: a size in a header is only a count of bytes to skip, never of bytes to hold, except for extensions below
`archive_metadata_bytes`; nothing is written to disk, so a name is only text; links, devices and sparse files have no content.

Source: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

from dataclasses import dataclass

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.reasons import Reason
from autowasm.text import shown
from autowasm.wasm.decompression import Stream, archive_invalid

BLOCK = 512
_REGULAR = b"0\x007"
_NO_CONTENT = b"123456"  # links, devices, directories, pipes: no content follows, whatever the size
_FOLDER = b"5"
_SPARSE = b"S"
_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX = b"L", b"K", b"x", b"g"


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One member. `name` as in the archive; `size` in bytes, as claimed; `is_file`: a plain file with its content."""

    name: str
    size: int
    is_file: bool
    is_folder: bool = False


@dataclass(slots=True)
class _Extension:
    """Fields of extension headers for the entry after them."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False


class TarReader:
    """Reads the entries of `stream` in order; an entry's content can be read until `next` is called."""

    def __init__(self, stream: Stream, *, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._entries = 0
        self._records_left = limits.archive_pax_records
        self._content = 0
        """Unread bytes of the current entry's content."""
        self._padding = 0
        self._where = "the first header"

    def next(self) -> TarEntry | None:
        """The next entry; None at the end. Raises ContentRejected: `ArchiveInvalid`, `ArchiveTooLarge`."""
        self._skip_content()
        extension = _Extension()
        headers = 0
        while (block := self._header()) is not None:
            headers += 1
            size, kind = _number(block[124:136]), block[156:157]
            if kind not in (_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX):
                return self._entry(block, size, kind, extension)
            if headers > 4:
                raise archive_invalid("more than four extension headers before one entry")
            self._extend(extension, size, kind)
        if headers:
            raise archive_invalid("it ends after an extension header")
        return None

    def read(self, size: int) -> bytes:
        """Some bytes of the current entry's content, at most `size`; empty at its end."""
        if self._content <= 0 or size <= 0:
            return b""
        data = self._stream.read(min(size, self._content))
        if not data:
            raise archive_invalid(f"it ends within {self._where}")
        self._content -= len(data)
        return data

    def _skip_content(self) -> None:
        self._stream.skip(self._content + self._padding, what=self._where)
        self._content = self._padding = 0

    def _header(self) -> bytes | None:
        """The next header block; None at the end, which is a block of zeros or no block at all."""
        head = self._stream.peek(BLOCK)
        if not head.strip(b"\0"):
            return None
        block = self._stream.read_exactly(BLOCK, what="a header")
        if not is_header(block):
            raise archive_invalid(f"no tar header after {self._where} (wrong checksum)")
        return block

    def _entry(self, block: bytes, size: int, kind: bytes, extension: _Extension) -> TarEntry:
        self._entries += 1
        if self._entries > self._limits.archive_entries:
            raise ContentRejected(
                f"the archive has more than {self._limits.archive_entries} entries: "
                "pack only the module",
                reason=Reason.ARCHIVE_TOO_LARGE,
            )
        name = _text(_name(block)) if extension.name is None else extension.name
        self._where = f"the entry {shown(name)}"
        if kind == _SPARSE:
            self._skip_sparse_maps(block)
        if extension.size is not None:
            size = extension.size
        if kind in _NO_CONTENT:
            size = 0
        self._expect(size)
        # A name that ends in a slash is a directory in archives from before POSIX.
        is_folder = kind == _FOLDER or (kind in _REGULAR and name.endswith("/"))
        is_file = kind in _REGULAR and not extension.is_sparse and not is_folder
        return TarEntry(name, size, is_file, is_folder)

    def _skip_sparse_maps(self, block: bytes) -> None:
        """Old GNU sparse files: more blocks of the map follow the header while a flag is set."""
        more = block[482]
        for _ in range(self._limits.archive_entries):
            if not more:
                return
            more = self._stream.read_exactly(BLOCK, what=self._where)[504]
        raise archive_invalid(f"{self._where} has an endless sparse map")

    def _expect(self, size: int) -> None:
        if size > self._limits.unpacked_bytes:
            raise ContentRejected(
                f"{self._where} of the archive claims {size} bytes; at most "
                f"{self._limits.unpacked_bytes} are accepted: pack only the module",
                reason=Reason.ARCHIVE_TOO_LARGE,
            )
        self._content = size
        self._padding = -size % BLOCK

    def _extend(self, extension: _Extension, size: int, kind: bytes) -> None:
        if size > self._limits.archive_metadata_bytes:
            raise ContentRejected(
                f"an extension header of the archive claims {size} bytes; at most "
                f"{self._limits.archive_metadata_bytes} are accepted: pack it again",
                reason=Reason.ARCHIVE_TOO_LARGE,
            )
        data = self._stream.read_exactly(size, what="an extension header")
        self._stream.skip(-size % BLOCK, what="an extension header")
        if kind == _LONG_NAME:
            extension.name = self._bounded(data.partition(b"\0")[0])
        elif kind == _PAX:
            self._read_pax(data, extension)

    def _read_pax(self, data: bytes, extension: _Extension) -> None:
        r"""Records `length key=value\n`, where the length counts the whole record."""
        position = 0
        while position < len(data):
            self._records_left -= 1
            if self._records_left < 0:
                raise ContentRejected(
                    f"the archive has more than {self._limits.archive_pax_records} pax records: "
                    "pack only the module",
                    reason=Reason.ARCHIVE_TOO_LARGE,
                )
            digits, space, _ = data[position : position + 10].partition(b" ")
            length = int(digits) if space and digits.isdigit() else 0
            record = data[position : position + length]
            if length <= len(digits) + 2 or record[-1:] != b"\n" or len(record) < length:
                raise archive_invalid("a pax header whose records have wrong lengths")
            key, _, value = record[len(digits) + 1 : -1].partition(b"=")
            if not value and key in (b"path", b"size"):
                # POSIX: an empty value cancels an earlier record; the value of the header itself counts.
                if key == b"path":
                    extension.name = None
                else:
                    extension.size = None
            elif key == b"path":
                extension.name = self._bounded(value)
            elif key == b"size":
                if not value.isdigit() or len(value) > 20:
                    raise archive_invalid("a pax header whose size is not a number")
                extension.size = int(value)
            elif key.startswith(b"GNU.sparse."):
                extension.is_sparse = True
            position += length

    def _bounded(self, name: bytes) -> str:
        """The name, cut if it is too long. The cut ends in a slash, so it cannot be the name of a module."""
        most = self._limits.archive_name_bytes
        return _text(name) if len(name) <= most else _text(name[:most]) + "/"


def is_header(block: bytes) -> bool:
    """Whether `block` is a tar header with the right checksum: the sum of its bytes, with the checksum field as spaces."""
    if len(block) < BLOCK:
        return False
    try:
        claimed = _number(block[148:156])
    except ContentRejected:
        return False
    rest = block[:148] + b" " * 8 + block[156:BLOCK]
    unsigned = sum(rest)
    # Old Sun tars summed signed bytes.
    return claimed == unsigned or claimed == unsigned - 256 * sum(byte > 127 for byte in rest)


def _number(field: bytes) -> int:
    """Octal digits between spaces and zeros or, after the bits 10, a big-endian integer (GNU; 11 is a negative one)."""
    if field[0] & 0xC0 == 0x80:
        return int.from_bytes(field, "big") - (1 << (8 * len(field) - 1))
    digits = field.strip(b" \0").partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise archive_invalid("a header with an invalid or negative number")
    return int(digits, 8)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345:346] != b"\0":
        return block[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
