"""A bounded reader of the WebAssembly binary format: header, sections, LEB128 integers, names.

Not a validator (see `validation.py`). `sections.py` decodes the contents of sections.
Invariants: the reader never reads past its end; it uses no count or length before the bytes for it are there; every
defect is a ContentRejected with the byte position.

Source: WebAssembly Core Specification 3.0, chapter 5 "Binary Format".
"""

from collections.abc import Iterator
from dataclasses import dataclass

from autowasm.errors import ContentRejected
from autowasm.reasons import Reason
from autowasm.text import shown

MAGIC = b"\0asm"
_CORE_VERSION = b"\x01\0\0\0"
_HEADER = 8

CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT = 0, 1, 2, 3, 4, 5, 6, 7
ELEMENT, CODE, DATA = 9, 10, 11
_SECTION_NAMES = (
    *("custom", "type", "import", "function", "table", "memory", "global", "export"),
    *("start", "element", "code", "data", "data count", "tag"),
)


def invalid(problem: str, *, at: int) -> ContentRejected:
    """The error for a module that breaks the format at byte `at`."""
    return ContentRejected(
        f"the module is malformed: {problem} (at byte {at}); build it again",
        reason=Reason.WASM_INVALID,
    )


def truncated(what: str, *, size: int, needed: int) -> ContentRejected:
    """The error for a module of `size` bytes that should have `needed`."""
    return ContentRejected(
        f"the module is truncated: it has {size} bytes, but {what} extends to byte {needed}; "
        "upload it again",
        reason=Reason.TRUNCATED,
    )


def too_many(what: str, count: int, most: int) -> ContentRejected:
    """The error for more parts of one kind than the limit."""
    return ContentRejected(
        f"the module has {count} or more {what}; at most {most} are accepted",
        reason=Reason.TOO_LARGE,
    )


class BinaryReader:
    """Reads `data[position:end]` forwards."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data = data
        self.position = position
        self.end = end

    @property
    def done(self) -> bool:
        """Whether every byte has been read."""
        return self.position >= self.end

    def byte(self) -> int:
        """The next byte. Raises ContentRejected (`WasmInvalid`) at the end, as all readers here do."""
        if self.position >= self.end:
            raise invalid("unexpected end of a section", at=self.position)
        self.position += 1
        return self.data[self.position - 1]

    def u32(self) -> int:
        """An unsigned LEB128 integer of 32 bits (specification 5.2.2): at most 5 bytes, no bits beyond 32."""
        return self._unsigned(32)

    def u64(self) -> int:
        """An unsigned LEB128 integer of 64 bits: limits of 64-bit memories and tables."""
        return self._unsigned(64)

    def _unsigned(self, bits: int) -> int:
        value = shift = 0
        start = self.position
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift >= bits:
                raise invalid(f"an integer longer than {bits} bits", at=start)
        if value >> bits:
            raise invalid(f"an integer larger than {bits} bits", at=start)
        return value

    def skip(self, count: int) -> None:
        """Skip `count` bytes."""
        if count > self.end - self.position:
            raise invalid("unexpected end of a section", at=self.position)
        self.position += count

    def skip_s33(self) -> None:
        """Skip a signed LEB128 integer of 33 bits (a heap type)."""
        start = self.position
        while self.byte() & 0x80:
            if self.position - start >= 5:
                raise invalid("an integer longer than 33 bits", at=start)

    def name(self, *, most: int) -> str:
        """A name of at most `most` bytes. Raises ContentRejected: `TooLarge` for a longer one."""
        start = self.position
        length = self.u32()
        if length > self.end - self.position:
            raise invalid("a name longer than its section", at=start)
        if length > most:
            head = shown(self.data[self.position : self.position + 40])
            raise ContentRejected(
                f"the module has an import or export name of {length} bytes ({head}); "
                f"at most {most} are accepted",
                reason=Reason.TOO_LARGE,
            )
        self.position += length
        try:
            return self.data[self.position - length : self.position].decode()
        except UnicodeDecodeError as error:
            raise invalid("a name that is not UTF-8", at=start) from error


@dataclass(frozen=True, slots=True)
class Section:
    """The position of one section's content. `name` is the name of a custom section, as bytes; empty for other sections."""

    id: int
    start: int
    end: int
    name: bytes = b""

    def reader(self, data: bytes) -> BinaryReader:
        """A reader of the section's content; for a custom section, of the bytes after its name."""
        return BinaryReader(data, self.start, self.end)


def check_header(data: bytes) -> None:
    """Raise ContentRejected (`NotWasm`, `Truncated`, `WasmComponent`, `WasmInvalid`) unless `data` begins as a core module."""
    head = data[:_HEADER]
    if not head:
        raise ContentRejected("the module is empty (0 bytes)", reason=Reason.NOT_WASM)
    if not (head.startswith(MAGIC) or MAGIC.startswith(head)):
        raise ContentRejected(
            f"this is not a WebAssembly module: {guess(data)}", reason=Reason.NOT_WASM
        )
    if len(head) < _HEADER:
        raise truncated("its header", size=len(head), needed=_HEADER)
    version = head[4:]
    if version[2:] == b"\x01\0":  # the layer: 0 is a module, 1 a component
        raise ContentRejected(
            "this is a WebAssembly component, but Envoy runs only core modules: build for wasm32-wasip1 "
            "(or wasm32-unknown-unknown), without wit-component, cargo-component or `componentize`",
            reason=Reason.WASM_COMPONENT,
        )
    if version != _CORE_VERSION:
        number = int.from_bytes(version, "little")
        raise invalid(f"binary format version {number}; only version 1 is supported", at=4)


def sections(data: bytes, *, most: int) -> Iterator[Section]:
    """All sections in order. Of their contents only the names of custom sections are read.

    Raises ContentRejected: `Truncated` when the module ends within a section, `TooLarge` for more than `most` sections,
    `WasmInvalid` for any other defect.
    """
    reader = BinaryReader(data, _HEADER, len(data))
    while not reader.done:
        most -= 1
        if most < 0:
            raise ContentRejected(
                "the module has too many sections: remove the custom ones with wasm-strip",
                reason=Reason.TOO_LARGE,
            )
        start = reader.position
        number = reader.byte()
        if number >= len(_SECTION_NAMES):
            raise invalid(f"unknown section {number}", at=start)
        what = f"its {_SECTION_NAMES[number]} section"
        if len(data) - reader.position < 5 and all(b & 0x80 for b in data[reader.position :]):
            raise truncated(what, size=len(data), needed=len(data) + 1)
        length = reader.u32()
        end = reader.position + length
        if end > len(data):
            raise truncated(what, size=len(data), needed=end)
        yield _section(data, number, reader.position, end)
        reader.position = end


def _section(data: bytes, number: int, start: int, end: int) -> Section:
    if number != CUSTOM:
        return Section(number, start, end)
    reader = BinaryReader(data, start, end)
    length = reader.u32()
    if length > end - reader.position:
        raise invalid("a custom section whose name is longer than the section", at=start)
    content = reader.position + length
    # Names are only compared: 64 bytes are longer than any name that we compare with.
    return Section(number, content, end, data[reader.position : min(content, reader.position + 64)])


def guess(data: bytes) -> str:
    """The probable format of bytes that are not WebAssembly, in a few words."""
    head = data[:64].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        return "it is an HTML page, such as an error or login page"
    if head.startswith((b"{", b"[")):
        return "it looks like JSON"
    if head.startswith((b"(module", b";;")):
        return "it is WebAssembly text; compile it with wat2wasm"
    for magic, name in _MAGICS:
        if data.startswith(magic):
            return f"it is {name}"
    return f"it begins with the bytes {data[:8].hex(' ')}"


_MAGICS = (
    (b"\x1f\x8b", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"PK\x03\x04", "a zip archive; pack it as tar.gz or not at all"),
    (b"\xfd7zXZ", "xz data; pack it with gzip or not at all"),
    (b"BZh", "bzip2 data; pack it with gzip or not at all"),
    (b"\x7fELF", "a native program (ELF); build for wasm32-wasip1"),
)
