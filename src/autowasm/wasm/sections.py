"""What the sections of a module say that its host must be able to meet: imports, exports, function names.

Not a validator, and not the types of functions (`values.py`), memories, tables and globals (`storage.py`). These readers are given bytes that `validation.py` has passed, and refuse rather than guess where that
is not so. Invariant: no table is longer than its limit in `limits.Limits`, and the content of code, data and custom
sections is never read, but for the function names, because Envoy reads those too.

Source: WebAssembly Core Specification 3.0, sections 5.3 "Types" and 5.5 "Modules".
"""

from dataclasses import dataclass

import msgspec

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.binary import Reader, invalid, too_many
from autowasm.wasm.storage import Storage, read_storage
from autowasm.wasm.values import read_value_type

FUNCTION, TABLE, MEMORY, GLOBAL, TAG = "function", "table", "memory", "global", "tag"
_KINDS = (FUNCTION, TABLE, MEMORY, GLOBAL, TAG)
_COMPACT = (b"\x7f", b"\x7e")
"""After a module's name and an empty one: several imports of that module (the compact import section proposal)."""
_INDEX_END = 1 << 30
"""Function indices from here on Envoy cannot read in a name section, seen on 1.36.4 and 1.40.0."""


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
    if not name and reader.data[reader.position : reader.position + 1] in _COMPACT:
        raise ContentRejected(
            "the module has compact imports, an encoding that no Envoy reads, as `wasm-opt -all` writes it: leave out "
            "-all and name the features that are needed, or add --disable-compact-imports --disable-gc (without the "
            "second, -all may write calls over which Envoy crashes)",
            reason="WasmInvalid",
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


def read_exports(reader: Reader, *, limits: Limits) -> tuple[Export, ...]:
    """The export section. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    if (size := reader.end - reader.position) > limits.export_bytes:
        raise too_many("bytes of exports", size, limits.export_bytes)
    count = _count(reader, most=limits.exports, what="exports")
    most = limits.name_bytes
    return tuple(Export(reader.name(most=most), _kind(reader), reader.u32()) for _ in range(count))


def _kind(reader: Reader) -> str:
    code = reader.byte()
    if code >= len(_KINDS):
        raise invalid(f"unknown kind {code} of import or export", at=reader.position - 1)
    return _KINDS[code]


def _count(reader: Reader, *, most: int, what: str) -> int:
    count = reader.u32()
    if count > most:
        raise too_many(what, count, most)
    return count


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
        at = reader.position
        if reader.u32() >= _INDEX_END:
            raise invalid("a function index that Envoy cannot read", at=at)
        length = reader.u32()
        reader.position += length
        if reader.position > end:
            break
    if reader.position != end:
        raise invalid("the function names do not end where they should", at=end)
