"""Memories, tables and globals: their types and sizes.

Not a judge of them (`boundary.py`, `segments.py`). Invariant: no memory is spent on what a type only announces.

Source: WebAssembly Core Specification 3.0, sections 5.3 "Types" and 5.5 "Modules".
"""

from dataclasses import dataclass
from typing import Final

from autowasm.limits import Limits
from autowasm.wasm.binary import Reader
from autowasm.wasm.constants import Constants
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


def read_table(reader: Reader) -> tuple[Storage, bool]:
    """The type of one table that the module defines, and whether a constant expression for its entries follows."""
    has_value = reader.data[reader.position : reader.position + 1] == _WITH_INITIAL_VALUE
    if has_value:
        reader.skip(2)  # the mark, and a byte for what may come
    return read_storage(reader, is_table=True), has_value


def read_tables(reader: Reader, *, limits: Limits) -> list[Storage]:
    """Those that the module defines. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    constants = Constants(reader, limits=limits)
    tables = []
    for _ in range(reader.u32()):
        table, has_value = read_table(reader)
        tables.append(table)
        if has_value:
            constants.skip()
    return tables


def read_global_types(reader: Reader, wanted: set[int], *, limits: Limits) -> dict[int, int]:
    """The codes of the types of the wanted globals, counted from the first one that is not imported.

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
