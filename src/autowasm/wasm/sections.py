"""What the sections of a module say that its host must be able to meet: types, imports, exports, memories, tables.

Not a validator: these readers are given bytes that `validation.py` has passed, and refuse rather than guess where that
is not so. Invariant: no table is longer than its limit in `limits.Limits`, and the content of code, data and custom
sections is never read, but for the function names, because Envoy reads those too.

Source: WebAssembly Core Specification 3.0, sections 5.3 "Types" and 5.5 "Modules".
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.binary import Reader, invalid

FUNCTION, TABLE, MEMORY, GLOBAL, TAG = "function", "table", "memory", "global", "tag"
_KINDS = (FUNCTION, TABLE, MEMORY, GLOBAL, TAG)
_VALUES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128", 0x70: "funcref"}
_REFERENCE, _NULL_REFERENCE = 0x64, 0x63  # each with a heap type after it


@dataclass(frozen=True, slots=True)
class Import:
    """One import. `module` and `name` are as in the binary."""

    module: str
    name: str
    kind: str
    type_index: int = 0
    """Of a function: into the module's types."""
    minimum: int = 0
    """Of a memory, in its pages, or of a table, in entries: the size at the start."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Export(msgspec.Struct, frozen=True, gc=False):
    """One export. `index` is into the module's functions, tables, … by kind, imported ones first.

    A Struct that the garbage collector does not look at: to make and drop 100 000 others holds the interpreter for 30 ms.
    """

    name: str
    kind: str
    index: int


def read_imports(reader: Reader, *, limits: Limits) -> tuple[Import, ...]:
    """The import section. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    count = _count(reader, most=limits.imports, what="imports")
    return tuple(_read_import(reader, most=limits.name_bytes) for _ in range(count))


def _read_import(reader: Reader, *, most: int) -> Import:
    module, name = reader.name(most=most), reader.name(most=most)
    kind = _kind(reader)
    if kind == FUNCTION:
        return Import(module, name, kind, type_index=reader.u32())
    if kind == TABLE:
        _read_value_type(reader)
        return Import(module, name, kind, minimum=_read_minimum(reader))
    if kind == MEMORY:
        return Import(module, name, kind, minimum=_read_minimum(reader))
    if kind == GLOBAL:
        _read_value_type(reader)
        reader.byte()  # mutability
    else:
        reader.byte()  # attribute
        reader.u32()
    return Import(module, name, kind)


def read_exports(reader: Reader, *, limits: Limits) -> tuple[Export, ...]:
    """The export section. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    if (size := reader.end - reader.position) > limits.export_bytes:
        raise _too_many("bytes of exports", size, limits.export_bytes)
    count = _count(reader, most=limits.exports, what="exports")
    most = limits.name_bytes
    return tuple(Export(reader.name(most=most), _kind(reader), reader.u32()) for _ in range(count))


def read_function_types(reader: Reader, wanted: Iterable[int]) -> dict[int, int]:
    """The type index of each wanted function, counted from the first one that is not imported."""
    left = set(wanted)
    found = {}
    for index in range(reader.u32()):
        if not left:
            break
        type_index = reader.u32()
        if index in left:
            left.discard(index)
            found[index] = type_index
    return found


def read_minimums(reader: Reader, *, tables: bool) -> list[int]:
    """The sizes at the start of all memories, or of all tables, that the module defines."""
    minimums = []
    for _ in range(reader.u32()):
        if tables:
            if reader.data[reader.position : reader.position + 1] == b"\x40":
                break  # a table with an initial value, an expression: what follows it is not looked at
            _read_value_type(reader)
        minimums.append(_read_minimum(reader))
    return minimums


def read_signatures(reader: Reader, wanted: Iterable[int], *, limits: Limits) -> dict[int, str]:
    """The wanted function types in Envoy's notation: `i32 i64 -> i32`, `void -> void`.

    A type that is no function's is left out. Raises ContentRejected: `TooLarge` when a wanted one comes after more
    types than the limit, `WasmInvalid`.
    """
    left = set(wanted)
    signatures: dict[int, str] = {}
    types = _TypeReader(reader, limits=limits)
    index = 0
    for _ in range(reader.u32()):
        if not left:
            break
        for function in types.read_entry():
            if index >= limits.types:
                raise _too_many("types", index, limits.types)
            if index in left:
                left.discard(index)
                if function is not None:
                    signatures[index] = " -> ".join(_shown_values(each) for each in function)
            index += 1
    return signatures


_Function = tuple[bytes, bytes]
"""The codes of its parameters and of its results; what a reference refers to is left out."""


def _shown_values(codes: bytes) -> str:
    return " ".join(_VALUES.get(code, "ref") for code in codes) or "void"


class _TypeReader:
    """Passes over types as fast as their form allows: a hostile module has 30 million parameters."""

    def __init__(self, reader: Reader, *, limits: Limits) -> None:
        self._reader = reader
        self._most = self._left = limits.type_parts

    def read_entry(self) -> Iterator[_Function | None]:
        """One entry of the section: a type, or a group of types that refer to each other (0x4E)."""
        reader = self._reader
        if reader.data[reader.position : reader.position + 1] != b"\x4e":
            yield self._read_type()
            return
        reader.byte()
        for _ in range(reader.u32()):
            yield self._read_type()

    def _read_type(self) -> _Function | None:
        reader = self._reader
        form = reader.byte()
        if form in (0x50, 0x4F):  # a subtype: its supertypes, then the type itself
            for _ in range(reader.u32()):
                self._part()
                reader.u32()
            form = reader.byte()
        if form == 0x60:
            return self._read_values(), self._read_values()
        if form == 0x5F:  # structure
            for _ in range(reader.u32()):
                self._skip_field()
        elif form == 0x5E:  # array
            self._skip_field()
        else:
            raise invalid(f"unknown type form {form:#x}", at=reader.position - 1)
        return None

    def _read_values(self) -> bytes:
        reader = self._reader
        count = reader.u32()
        if count > reader.end - reader.position:
            raise invalid("more values than the section has bytes", at=reader.position)
        codes = reader.data[reader.position : reader.position + count]
        if _REFERENCE not in codes and _NULL_REFERENCE not in codes:
            reader.position += count
            return codes
        return bytes(self._read_value() for _ in range(count))

    def _read_value(self) -> int:
        self._part()
        return _read_value_type(self._reader)

    def _skip_field(self) -> None:
        self._read_value()  # packed types i8 and i16 are one byte as well
        self._reader.byte()  # mutability

    def _part(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _too_many("parts of types", self._most, self._most)


def _read_value_type(reader: Reader) -> int:
    code = reader.byte()
    if code in (_REFERENCE, _NULL_REFERENCE):
        reader.skip_s33()
    return code


def _read_minimum(reader: Reader) -> int:
    """The smaller of two limits; the flags say whether there is a larger one (1) and a page size (8)."""
    flags = reader.byte()
    minimum = reader.u64()
    if flags & 1:
        reader.u64()
    if flags & 8:
        reader.u32()
    return minimum


def _kind(reader: Reader) -> str:
    code = reader.byte()
    if code >= len(_KINDS):
        raise invalid(f"unknown kind {code} of import or export", at=reader.position - 1)
    return _KINDS[code]


def _count(reader: Reader, *, most: int, what: str) -> int:
    count = reader.u32()
    if count > most:
        raise _too_many(what, count, most)
    return count


def _too_many(what: str, count: int, most: int) -> ContentRejected:
    return ContentRejected(
        f"the module has {count} or more {what}; at most {most} are accepted",
        reason="TooLarge",
    )


def check_function_names(reader: Reader, *, limits: Limits) -> None:
    """Refuse a name section on which Envoy fails, though the specification lets a host ignore it.

    Envoy reads the first custom section called `name` before anything else: proxy-wasm-cpp-host, src/bytecode_util.cc
    `getFunctionNameIndex` (commit 16d8c2a); a defect there is "Failed to parse corrupted Wasm module", seen on Envoy
    1.36 and 1.40. Raises ContentRejected: `WasmInvalid`, `TooLarge`.
    """
    try:
        while not reader.done:
            subsection = reader.byte()
            size = reader.u32()
            end = reader.position + size
            if end > reader.end:
                raise invalid("a part longer than the section", at=reader.position)
            if subsection == 1:
                _skip_names(reader, end, most=limits.function_names)
            reader.position = end
    except ContentRejected as error:
        if error.reason != "WasmInvalid":
            raise
        raise ContentRejected(
            "the module's name section (function names for debugging) is malformed and Envoy refuses "
            f"the module for it: {error}; or remove the section with wasm-strip",
            reason="WasmInvalid",
        ) from error


def _skip_names(reader: Reader, end: int, *, most: int) -> None:
    """Pass over a map of function index to name that must fill the part up to `end` exactly."""
    count = reader.u32()
    if count > most:
        raise ContentRejected(
            f"the module's name section has {count} function names; at most {most} are accepted: "
            "remove them with wasm-strip",
            reason="TooLarge",
        )
    for _ in range(count):
        reader.u32()
        length = reader.u32()
        reader.position += length
        if reader.position > end:
            break
    if reader.position != end:
        raise invalid("the function names do not end where they should", at=end)
