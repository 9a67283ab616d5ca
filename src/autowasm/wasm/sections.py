"""The sections that a host must be able to process: imports, exports, types, memories, tables, globals, function names.

`binary.py` finds the sections, `module.py` runs the checks. The readers here decode; `abi.py`, `envoycrash.py` and `start.py`
compare with Envoy. They expect a module that `validation.py` has passed, and refuse what they cannot decode. Constant
expressions are not evaluated: at most one number is read.
Invariants: no table is longer than its limit in `limits.Limits`; of a type section only the wanted types are kept; no
memory is allocated for a size that a type only announces; one reader passes over at most `limits.type_parts` parts of
types or instructions of constant expressions; the contents of code, data and custom sections are not read, except the
function names, because Envoy reads those too.

Source: WebAssembly Core Specification 3.0, sections 5.3 "Types", 5.4.9 "Expressions" and 5.5 "Modules".
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.reasons import Reason
from autowasm.wasm.binary import BinaryReader, invalid, too_many

FUNCREF, EXTERNREF = 0x70, 0x6F
_VALUES = {
    **{0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"},
    **{FUNCREF: "funcref", EXTERNREF: "externref"},
}
_REFERENCE, _NULL_REFERENCE = 0x64, 0x63  # each with a heap type after it
_HEAPS = (bytes([FUNCREF]), bytes([EXTERNREF]))

KNOWN_TO_HOST = bytes([0x7F, 0x7E, 0x7D, 0x7C, FUNCREF, EXTERNREF])
"""Types that V8's C API, through which Envoy loads modules, can represent. Any other type aborts the process.

Only the short forms: V8 also takes `(ref func)` and `(ref extern)`, but no compiler exports those.
"""


def read_function_types(reader: BinaryReader, wanted: Iterable[int]) -> dict[int, int]:
    """The type index of each wanted function. Functions count from the first that is not imported."""
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


def read_signatures(
    reader: BinaryReader, wanted: Iterable[int], *, limits: Limits
) -> dict[int, str]:
    """The wanted function types in Envoy's notation: `i32 i64 -> i32`, `void -> void`.

    A type that is not a function type is left out. Raises ContentRejected: `TooLarge` when more types than the limit
    precede a wanted one, `WasmInvalid`.
    """
    return {
        index: " -> ".join(_shown_values(each) for each in function)
        for index, function in _wanted_types(reader, wanted, limits=limits)
        if function is not None
    }


def find_unknown_type(reader: BinaryReader, wanted: Iterable[int], *, limits: Limits) -> int | None:
    """The first wanted function type with a value type outside `KNOWN_TO_HOST`. Raises as `read_signatures`."""
    for index, function in _wanted_types(reader, wanted, limits=limits):
        if function and any(codes.translate(None, KNOWN_TO_HOST) for codes in function):
            return index
    return None


def _wanted_types(
    reader: BinaryReader, wanted: Iterable[int], *, limits: Limits
) -> "Iterator[tuple[int, _Function | None]]":
    """Index and function type, None for another type, of each wanted type; reads no entry after the last of them."""
    left = set(wanted)
    types = _TypeReader(reader, limits=limits)
    index = 0
    for _ in range(reader.u32()):
        if not left:
            return
        for function in types.read_entry():
            if index >= limits.types:
                raise too_many("types", index, limits.types)
            if index in left:
                left.discard(index)
                yield index, function
            index += 1


def find_linked_type(reader: BinaryReader, wanted: Iterable[int], *, limits: Limits) -> int | None:
    """The first wanted type that depends on others: in a recursive group of several, open, or with a supertype.

    Two modules, or a module and its host, agree on a function only if its type is equal with its whole group and all its
    supertypes (specification 3.1, "Recursive types"). Raises as `read_signatures`.
    """
    left = set(wanted)
    types = _TypeReader(reader, limits=limits)
    index = 0
    for _ in range(reader.u32()):
        if not left:
            break
        is_plain, first = types.is_plain(), index
        for _ in types.read_entry():
            if index >= limits.types:
                raise too_many("types", index, limits.types)
            index += 1
        found = left.intersection(range(first, index))
        if found and not is_plain:
            return min(found)
        left -= found
    return None


_Function = tuple[bytes, bytes]
"""The codes of its parameters and of its results, without the heap types of references."""


def _shown_values(codes: bytes) -> str:
    return " ".join(_VALUES.get(code, "ref") for code in codes) or "void"


class _TypeReader:
    """Skips types as fast as their form allows: a hostile module has 30 million parameters."""

    def __init__(self, reader: BinaryReader, *, limits: Limits) -> None:
        self._reader = reader
        self._most = self._left = limits.type_parts

    def is_plain(self) -> bool:
        """Whether the next entry is one final type without supertypes; the position does not move."""
        reader = BinaryReader(self._reader.data, self._reader.position, self._reader.end)
        form = reader.byte()
        if form == 0x4E:
            if reader.u32() != 1:
                return False
            form = reader.byte()
        return form not in (0x50, 0x4F) or (form == 0x4F and reader.u32() == 0)

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
        return read_value_type(self._reader)

    def _skip_field(self) -> None:
        self._read_value()  # packed types i8 and i16 are one byte as well
        self._reader.byte()  # mutability

    def _part(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise too_many("parts of types", self._most, self._most)


def read_value_type(reader: BinaryReader) -> int:
    """The code of a value type; for a nullable reference to func or extern in the long form, the code of its short form."""
    code = reader.byte()
    if code not in (_REFERENCE, _NULL_REFERENCE):
        return code
    heap = reader.data[reader.position : reader.position + 1]
    reader.skip_s33()
    return heap[0] if code == _NULL_REFERENCE and heap in _HEAPS else code


_END: Final = 0x0B
_NUMBERS: Final = {0x41: 32, 0x42: 64}
"""i32.const, i64.const, and their bits."""
_REF_FUNC: Final = 0xD2
_INTEGERS: Final = frozenset({0x41, 0x42, 0x23, 0xD0})
"""i32.const, i64.const, global.get, ref.null: each with one LEB128 integer."""
_FIXED: Final = {0x43: 4, 0x44: 8, **dict.fromkeys((0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E), 0)}
"""f32.const, f64.const; add, sub and mul of integers: the number of bytes after each."""
_VECTOR, _VECTOR_CONST, _VECTOR_BYTES = 0xFD, 12, 16
_COLLECTED: Final = 0xFB
_COLLECTED_INTEGERS: Final = {0: 1, 1: 1, 6: 1, 7: 1, 8: 2, 26: 0, 27: 0, 28: 0}
"""struct.new, struct.new_default, array.new, array.new_default, array.new_fixed, conversions, ref.i31."""


class Constants:
    """Skips valid constant expressions. `functions` are the operands of `ref.func` in the expressions so far."""

    def __init__(self, reader: BinaryReader, *, limits: Limits) -> None:
        self._reader = reader
        self._most = self._left = limits.type_parts
        self.functions: set[int] = set()

    def address(self) -> int | None:
        """The value of an expression that is a single constant, as an unsigned integer; None for any other expression."""
        reader = self._reader
        start = reader.position
        bits = _NUMBERS.get(reader.byte())
        if bits:
            value = shift = 0
            while (byte := reader.byte()) & 0x80:
                value |= (byte & 0x7F) << shift
                shift += 7
            value |= (byte & 0x7F) << shift
            if byte & 0x40:
                value -= 1 << (shift + 7)
            if reader.byte() == _END:
                return value % (1 << bits)
        reader.position = start
        self.skip()
        return None

    def skip(self) -> None:
        """Skip one expression, with its end."""
        reader = self._reader
        while (code := reader.byte()) != _END:
            self._left -= 1
            if self._left < 0:
                raise too_many("instructions in initial values", self._most, self._most)
            if code in _INTEGERS:
                _skip_integer(reader)
            elif code == _REF_FUNC:
                self.functions.add(reader.u32())
            elif code in _FIXED:
                reader.skip(_FIXED[code])
            elif code == _VECTOR and reader.u32() == _VECTOR_CONST:
                reader.skip(_VECTOR_BYTES)
            elif code == _COLLECTED and (kind := reader.u32()) in _COLLECTED_INTEGERS:
                for _ in range(_COLLECTED_INTEGERS[kind]):
                    reader.u32()
            else:
                raise invalid(
                    f"an initial value with the instruction {code:#x}", at=reader.position
                )


def _skip_integer(reader: BinaryReader) -> None:
    while reader.byte() & 0x80:
        pass


_HAS_MAXIMUM, _SHARED, _64_BIT, _PAGE_SIZE = 1, 2, 4, 8
_WITH_INITIAL_VALUE: Final = b"\x40"


@dataclass(frozen=True, slots=True)
class Storage:
    """The type of a memory, in its pages, or of a table, in entries."""

    minimum: int
    """The size at the start."""
    maximum: int | None = None
    is_shared: bool = False
    is_64_bit: bool = False
    entry: int = 0
    """Of a table: the code of its entries' type, as `read_value_type` returns it."""


def read_storage(reader: BinaryReader, *, is_table: bool) -> Storage:
    """The type of one memory or table."""
    entry = read_value_type(reader) if is_table else 0
    flags = reader.byte()
    minimum = reader.u64()
    maximum = reader.u64() if flags & _HAS_MAXIMUM else None
    if flags & _PAGE_SIZE:
        reader.u32()
    return Storage(minimum, maximum, bool(flags & _SHARED), bool(flags & _64_BIT), entry)


def read_memories(reader: BinaryReader) -> list[Storage]:
    """The memories that the module defines."""
    return [read_storage(reader, is_table=False) for _ in range(reader.u32())]


def read_table(reader: BinaryReader) -> tuple[Storage, bool]:
    """The type of one table that the module defines, and whether a constant expression for its entries follows."""
    has_value = reader.data[reader.position : reader.position + 1] == _WITH_INITIAL_VALUE
    if has_value:
        reader.skip(2)  # the mark, and a reserved byte
    return read_storage(reader, is_table=True), has_value


def read_tables(reader: BinaryReader, *, limits: Limits) -> list[Storage]:
    """The tables that the module defines. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    constants = Constants(reader, limits=limits)
    tables = []
    for _ in range(reader.u32()):
        table, has_value = read_table(reader)
        tables.append(table)
        if has_value:
            constants.skip()
    return tables


def read_global_types(reader: BinaryReader, wanted: set[int], *, limits: Limits) -> dict[int, int]:
    """The type codes of the wanted globals. Globals count from the first that is not imported.

    Raises ContentRejected: `TooLarge`, `WasmInvalid`.
    """
    constants = Constants(reader, limits=limits)
    last = max(wanted, default=-1)
    found = {}
    for index in range(min(reader.u32(), last + 1)):
        code = read_value_type(reader)
        reader.byte()  # mutability
        constants.skip()
        if index in wanted:
            found[index] = code
    return found


FUNCTION, TABLE, MEMORY, GLOBAL, TAG = "function", "table", "memory", "global", "tag"
_KINDS = (FUNCTION, TABLE, MEMORY, GLOBAL, TAG)
_COMPACT = (b"\x7f", b"\x7e")
"""After a module's name and an empty one: several imports of that module (the compact import section proposal)."""
_INDEX_END = 1 << 30
"""Envoy cannot read this function index, or a greater one, in a name section, seen on 1.36.4 and 1.40.0."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import. `module` and `name` are as in the binary."""

    module: str
    name: str
    kind: str
    type_index: int = 0
    """Of a function: into the module's types."""
    storage: Storage | None = None
    """Of a memory or a table."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Export(msgspec.Struct, frozen=True, gc=False):
    """One export. `index` is into the module's functions, tables, … by kind, imported ones first.

    A Struct that the garbage collector does not track: making and dropping 100 000 tracked ones holds the interpreter for 30 ms.
    """

    name: str
    kind: str
    index: int


def read_imports(reader: BinaryReader, *, limits: Limits) -> tuple[Import, ...]:
    """The import section. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    count = _count(reader, most=limits.imports, what="imports")
    return tuple(_read_import(reader, most=limits.name_bytes) for _ in range(count))


def _read_import(reader: BinaryReader, *, most: int) -> Import:
    module, name = reader.name(most=most), reader.name(most=most)
    if not name and reader.data[reader.position : reader.position + 1] in _COMPACT:
        raise ContentRejected(
            "the module has compact imports, an encoding that `wasm-opt -all` writes and no Envoy reads: omit "
            "-all and name the required features, or add --disable-compact-imports --disable-gc (without the "
            "second, -all may write calls that crash Envoy)",
            reason=Reason.WASM_INVALID,
        )
    kind = _kind(reader)
    if kind == FUNCTION:
        return Import(module, name, kind, type_index=reader.u32())
    if kind in (TABLE, MEMORY):
        return Import(module, name, kind, storage=read_storage(reader, is_table=kind == TABLE))
    if kind == GLOBAL:
        read_value_type(reader)
        reader.byte()  # mutability
    else:
        reader.byte()  # attribute
        reader.u32()
    return Import(module, name, kind)


def read_exports(reader: BinaryReader, *, limits: Limits) -> tuple[Export, ...]:
    """The export section. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    if (size := reader.end - reader.position) > limits.export_bytes:
        raise too_many("bytes of exports", size, limits.export_bytes)
    count = _count(reader, most=limits.exports, what="exports")
    most = limits.name_bytes
    return tuple(Export(reader.name(most=most), _kind(reader), reader.u32()) for _ in range(count))


def _kind(reader: BinaryReader) -> str:
    code = reader.byte()
    if code >= len(_KINDS):
        raise invalid(f"unknown import or export kind {code}", at=reader.position - 1)
    return _KINDS[code]


def _count(reader: BinaryReader, *, most: int, what: str) -> int:
    count = reader.u32()
    if count > most:
        raise too_many(what, count, most)
    return count


def check_function_names(reader: BinaryReader, *, limits: Limits) -> None:
    """Refuse a name section that makes Envoy fail, although the specification lets a host ignore it.

    Envoy reads the first custom section named `name` before any other: proxy-wasm-cpp-host, src/bytecode_util.cc
    `getFunctionNameIndex` (commit 16d8c2a). A defect there is "Failed to parse corrupted Wasm module", seen on Envoy
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
        if error.reason != Reason.WASM_INVALID:
            raise
        raise ContentRejected(
            "the module's name section (function names for debugging) is malformed and Envoy refuses "
            f"the module for it: {error}; or remove the section with wasm-strip",
            reason=Reason.WASM_INVALID,
        ) from error


def _skip_names(reader: BinaryReader, end: int, *, most: int) -> None:
    """Skip a map of function index to name that must fill the subsection up to `end` exactly."""
    count = reader.u32()
    if count > most:
        raise ContentRejected(
            f"the module's name section has {count} function names; at most {most} are accepted: "
            "remove them with wasm-strip",
            reason=Reason.TOO_LARGE,
        )
    for _ in range(count):
        at = reader.position
        if reader.u32() >= _INDEX_END:
            raise invalid("a function index that Envoy cannot read", at=at)
        length = reader.u32()
        reader.position += length
        if reader.position > end:
            break
    if reader.position != end:
        raise invalid("the function names do not end where they should", at=end)
