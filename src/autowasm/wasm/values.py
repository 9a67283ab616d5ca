"""Value types, and the types of functions that are made of them.

Not a comparison with Envoy's (`module.py`, `boundary.py`). Invariant: however long a type section is, what is kept of it is
what was asked for.

Source: WebAssembly Core Specification 3.0, section 5.3 "Types".
"""

from collections.abc import Iterable, Iterator

from autowasm.limits import Limits
from autowasm.wasm.binary import Reader, invalid, too_many

FUNCREF, EXTERNREF = 0x70, 0x6F
_VALUES = {
    **{0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"},
    **{FUNCREF: "funcref", EXTERNREF: "externref"},
}
_REFERENCE, _NULL_REFERENCE = 0x64, 0x63  # each with a heap type after it
_HEAPS = (bytes([FUNCREF]), bytes([EXTERNREF]))

KNOWN_TO_HOST = bytes([0x7F, 0x7E, 0x7D, 0x7C, FUNCREF, EXTERNREF])
"""Types that V8's C API, through which Envoy loads modules, has a name for. It aborts the process over any other.

Only their short forms, though V8 takes `(ref func)` and `(ref extern)` as well: no compiler exports those.
"""


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
                raise too_many("types", index, limits.types)
            if index in left:
                left.discard(index)
                if function is not None:
                    signatures[index] = " -> ".join(_shown_values(each) for each in function)
            index += 1
    return signatures


def find_unknown_type(reader: Reader, wanted: Iterable[int], *, limits: Limits) -> int | None:
    """The first of the wanted function types that has a value which is not `KNOWN_TO_HOST`. Raises as `read_signatures`."""
    left = set(wanted)
    types = _TypeReader(reader, limits=limits)
    index = 0
    for _ in range(reader.u32()):
        if not left:
            break
        for function in types.read_entry():
            if index >= limits.types:
                raise too_many("types", index, limits.types)
            if index in left:
                left.discard(index)
                if function and any(codes.translate(None, KNOWN_TO_HOST) for codes in function):
                    return index
            index += 1
    return None


def find_linked_type(reader: Reader, wanted: Iterable[int], *, limits: Limits) -> int | None:
    """The first of the wanted types that is not one on its own: in a recursive group of several, open, or a subtype.

    The type of a function that two modules, or a module and its host, call by the same name has to be equal with its whole
    group and all its supertypes (specification 3.1, "Recursive types"). Raises as `read_signatures`.
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
"""The codes of its parameters and of its results; what a reference refers to is left out."""


def _shown_values(codes: bytes) -> str:
    return " ".join(_VALUES.get(code, "ref") for code in codes) or "void"


class _TypeReader:
    """Passes over types as fast as their form allows: a hostile module has 30 million parameters."""

    def __init__(self, reader: Reader, *, limits: Limits) -> None:
        self._reader = reader
        self._most = self._left = limits.type_parts

    def is_plain(self) -> bool:
        """Whether the next entry is one final type without supertypes; nothing is read."""
        reader = Reader(self._reader.data, self._reader.position, self._reader.end)
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


def read_value_type(reader: Reader) -> int:
    """The code of a value type; of a reference written in two parts, that of its short form if it has one of ours."""
    code = reader.byte()
    if code not in (_REFERENCE, _NULL_REFERENCE):
        return code
    heap = reader.data[reader.position : reader.position + 1]
    reader.skip_s33()
    return heap[0] if code == _NULL_REFERENCE and heap in _HEAPS else code
