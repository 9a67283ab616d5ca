"""Memories, tables and globals: their types and sizes.

Not a judge of them (`boundary.py`). Invariant: of an initial value nothing is computed, and only so many instructions are
passed over as `limits.type_parts` says.

Source: WebAssembly Core Specification 3.0, sections 5.3 "Types", 5.4.9 "Expressions" and 5.5 "Modules".
"""

from dataclasses import dataclass
from typing import Final

from autowasm.limits import Limits
from autowasm.wasm.binary import Reader, invalid, too_many
from autowasm.wasm.values import read_value_type

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
    """Of a table: the code of its entries' type, as `values.read_value_type` has it."""


def read_storage(reader: Reader, *, is_table: bool) -> Storage:
    """The type of one memory or table."""
    entry = read_value_type(reader) if is_table else 0
    flags = reader.byte()
    minimum = reader.u64()
    maximum = reader.u64() if flags & _HAS_MAXIMUM else None
    if flags & _PAGE_SIZE:
        reader.u32()
    return Storage(minimum, maximum, bool(flags & _SHARED), bool(flags & _64_BIT), entry)


def read_memories(reader: Reader) -> list[Storage]:
    """Those that the module defines."""
    return [read_storage(reader, is_table=False) for _ in range(reader.u32())]


def read_tables(reader: Reader, *, limits: Limits) -> list[Storage]:
    """Those that the module defines. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    constants = _Constants(reader, limits=limits)
    tables = []
    for _ in range(reader.u32()):
        has_value = reader.data[reader.position : reader.position + 1] == _WITH_INITIAL_VALUE
        if has_value:
            reader.skip(2)  # the mark, and a byte for what may come
        tables.append(read_storage(reader, is_table=True))
        if has_value:
            constants.skip()
    return tables


def read_global_types(reader: Reader, wanted: set[int], *, limits: Limits) -> dict[int, int]:
    """The codes of the types of the wanted globals, counted from the first one that is not imported.

    Raises ContentRejected: `TooLarge`, `WasmInvalid`.
    """
    constants = _Constants(reader, limits=limits)
    last = max(wanted, default=-1)
    found = {}
    for index in range(min(reader.u32(), last + 1)):
        code = read_value_type(reader)
        reader.byte()  # mutability
        constants.skip()
        if index in wanted:
            found[index] = code
    return found


_END: Final = 0x0B
_INTEGERS: Final = frozenset({0x41, 0x42, 0x23, 0xD0, 0xD2})
"""i32.const, i64.const, global.get, ref.null, ref.func: each with one LEB128 integer."""
_FIXED: Final = {0x43: 4, 0x44: 8, **dict.fromkeys((0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E), 0)}
"""f32.const, f64.const; the sums, differences and products of integers. The bytes after each."""
_VECTOR, _VECTOR_CONST, _VECTOR_BYTES = 0xFD, 12, 16
_COLLECTED: Final = 0xFB
_COLLECTED_INTEGERS: Final = {0: 1, 1: 1, 6: 1, 7: 1, 8: 2, 26: 0, 27: 0, 28: 0}
"""struct.new, struct.new_default, array.new, array.new_default, array.new_fixed, conversions, ref.i31."""


class _Constants:
    """Passes over constant expressions, which validation has found to be some."""

    def __init__(self, reader: Reader, *, limits: Limits) -> None:
        self._reader = reader
        self._most = self._left = limits.type_parts

    def skip(self) -> None:
        """To behind the end of one expression."""
        reader = self._reader
        while (code := reader.byte()) != _END:
            self._left -= 1
            if self._left < 0:
                raise too_many("instructions in initial values", self._most, self._most)
            if code in _INTEGERS:
                _skip_integer(reader)
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


def _skip_integer(reader: Reader) -> None:
    while reader.byte() & 0x80:
        pass
