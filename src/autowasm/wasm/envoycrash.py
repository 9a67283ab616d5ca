"""Detects modules that crash the Envoy process: types that V8 cannot represent, calls by reference.

Envoy lists all imports and exports through V8's C API (`wasm-c-api`), used or not. That API ends the process over any value
type except numbers, funcref and externref, over a tag, and over tables that it cannot allocate. `call_ref` and
`return_call_ref` on an imported function end it with a segmentation fault; `call`, `call_indirect` and their tail calls on
the same function are fine. Binaryen writes such code: `wasm-opt -Oz -all` merges similar functions and passes the functions in
which they differ as references. All of this was seen on Envoy 1.36.4 and 1.40.0; tests/e2e/test_wasm_envoy.py checks it again. ADR 0028
has the forms that were tried. `abi.py` compares the types of functions with Envoy's own.

Invariants: a module that passes does not abort the proxy by its types; it passes only if one of these is proven, the cheap
proofs first (there is no analysis of where values flow):

1. no reference to an imported function can exist: no element, global, table or export names one, and without that a
   `ref.func` of it is not valid;
2. there is no `call_ref`: the module is valid without function references, in all bodies that were checked;
3. no reference that `call_ref` takes exists: no body has a `ref.func` of an imported function, and elements, globals and
   tables hold imported functions only as `funcref`, which a module without casts cannot turn into a typed reference;
4. no `call_ref` has the type of an imported function of which a reference exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.reasons import Reason
from autowasm.text import listed, shown
from autowasm.wasm import binary, bodies, sections
from autowasm.wasm.binary import BinaryReader
from autowasm.wasm.bodies import Bodies
from autowasm.wasm.sections import (
    EXTERNREF,
    FUNCREF,
    KNOWN_TO_HOST,
    Constants,
    Export,
    Import,
    Storage,
    read_table,
    read_value_type,
)
from autowasm.wasm.validation import Validation, calls_no_reference, casts_nothing

_REFERENCES: Final = frozenset({FUNCREF, EXTERNREF})


class BoundaryParts(Protocol):
    """The definitions of the module. Indices count from the first that is not imported."""

    def storages(self, kind: str) -> list[Storage]:
        """Its memories, or its tables."""

    def global_types(self, wanted: set[int]) -> dict[int, int]:
        """The type codes of these globals."""

    def function_types(self, wanted: set[int]) -> dict[int, int]:
        """The type indices of these functions."""

    def find_linked_type(self, wanted: set[int]) -> int | None:
        """The first of these types that belongs to a group of several, is open, or has a supertype."""

    def find_unknown_type(self, wanted: set[int]) -> int | None:
        """The first of these function types with a value type outside `KNOWN_TO_HOST`."""


def check_boundary(
    parts: BoundaryParts, imports: Sequence[Import], exports: Sequence[Export], *, limits: Limits
) -> None:
    """Raise ContentRejected: `ImportMismatch`, `ExportMismatch`, `TooLarge`."""
    _check_sizes(parts, imports, limits=limits)
    for each in imports:
        if each.storage is not None:
            _check_imported(each, each.storage, limits=limits)
    _check_functions(parts, imports, exports)
    tables = [each.storage for each in imports if each.kind == sections.TABLE and each.storage]
    entries = dict(enumerate(each.entry for each in [*tables, *parts.storages(sections.TABLE)]))
    wanted = {each.index for each in exports if each.kind == sections.GLOBAL}
    values = parts.global_types(wanted)  # none is imported: Envoy offers none
    for export in exports:
        if export.kind == sections.TAG:
            raise _crashes(f"exports the tag {shown(export.name)}")
        if export.kind == sections.TABLE and entries.get(export.index) not in _REFERENCES:
            raise _crashes(f"exports the table {shown(export.name)}, of entries of another type")
        if export.kind == sections.GLOBAL and values.get(export.index, 0) not in KNOWN_TO_HOST:
            raise _crashes(f"exports the global {shown(export.name)}, of another type")


def _check_sizes(parts: BoundaryParts, imports: Sequence[Import], *, limits: Limits) -> None:
    """Refuse memories and tables that Envoy's V8 cannot create. The sizes of tables add up; memories are only reserved."""
    for kind, most, unit in (
        (sections.MEMORY, limits.memory_pages, "pages of 64 KiB"),
        (sections.TABLE, limits.table_entries, "entries"),
    ):
        imported = [each.storage for each in imports if each.kind == kind and each.storage]
        minimums = [each.minimum for each in (*imported, *parts.storages(kind))]
        size = sum(minimums) if kind == sections.TABLE else max(minimums, default=0)
        if size > most:
            raise ContentRejected(
                f"the module's {kind} has an initial size of {size} {unit}, but Envoy allows at most {most}: "
                "reduce the initial size",
                reason=Reason.TOO_LARGE,
            )
    for memory in parts.storages(sections.MEMORY):
        if memory.is_64_bit and (memory.maximum or 0) > limits.memory_pages_64:
            raise ContentRejected(
                f"the module's 64-bit memory may grow to {memory.maximum} pages of 64 KiB, but Envoy allows at most {limits.memory_pages_64}: reduce the maximum",
                reason=Reason.TOO_LARGE,
            )


def _check_imported(each: Import, storage: Storage, *, limits: Limits) -> None:
    """Refuse an imported memory or table that Envoy cannot create for the module."""
    if storage.is_64_bit or storage.is_shared:
        problem = "64-bit" if storage.is_64_bit else "shared"
    elif each.kind == sections.TABLE and storage.entry not in _REFERENCES:
        problem = "of entries that are neither funcref nor externref"
    elif each.kind == sections.TABLE and (storage.maximum or 0) > limits.table_entries:
        problem = f"of a maximum above {limits.table_entries}"
    else:
        return
    raise ContentRejected(
        f"the module imports the {each.kind} {shown(str(each))}, which is {problem}, so Envoy cannot create it: define the {each.kind} in the module",
        reason=Reason.IMPORT_MISMATCH,
    )


def _check_functions(
    parts: BoundaryParts, imports: Sequence[Import], exports: Sequence[Export]
) -> None:
    imported = [each.type_index for each in imports if each.kind == sections.FUNCTION]
    linked = parts.find_linked_type(set(imported))
    for each in imports:
        if each.kind == sections.FUNCTION and each.type_index == linked:
            raise ContentRejected(
                f"the module imports the function {shown(str(each))} with a type that belongs to a group of types or "
                "may have subtypes, so Envoy cannot link it: declare its type separately (in wasm-opt: omit -all, "
                "or add --disable-gc)",
                reason=Reason.IMPORT_MISMATCH,
            )
    exported = {each.index for each in exports if each.kind == sections.FUNCTION}
    first = len(imported)
    own = parts.function_types({index - first for index in exported if index >= first})
    unknown = parts.find_unknown_type({*imported, *own.values()})
    if unknown is None:
        return
    for each in imports:
        if each.kind == sections.FUNCTION and each.type_index == unknown:
            raise ContentRejected(
                f"the module imports the function {shown(str(each))} with a type that crashes Envoy: only "
                "i32, i64, f32, f64, funcref and externref may pass between a module and Envoy",
                reason=Reason.IMPORT_MISMATCH,
            )
    for export in exports:
        if export.kind == sections.FUNCTION and own.get(export.index - first) == unknown:
            raise _crashes(f"exports the function {shown(export.name)}, with another type")


def _crashes(what: str) -> ContentRejected:
    return ContentRejected(
        f"the module {what}, and Envoy crashes when it loads such a module: only i32, i64, f32, f64, funcref and "
        "externref may be exported; do not export it (it may stay in the module)",
        reason=Reason.EXPORT_MISMATCH,
    )


_PASSIVE, _EXPLICIT, _EXPRESSIONS = 1, 2, 4
_DECLARATIVE = _PASSIVE | _EXPLICIT
_CALLS = frozenset({bodies.CALL_REF, bodies.RETURN_CALL_REF})
_MADE = frozenset({bodies.REF_FUNC})


class ReferenceParts(Protocol):
    """The sections of the module."""

    def reader(self, section: int) -> BinaryReader | None:
        """The content of a section that is not custom; None if it is absent."""

    def bodies(self) -> Bodies:
        """The code section."""

    def signatures(self, wanted: set[int]) -> dict[int, str]:
        """Function types in Envoy's notation, by their index."""


@dataclass(slots=True)
class _Named:
    """The imported functions to which the module refers outside of bodies."""

    typed: set[int] = field(default_factory=set)
    """Named in elements, globals and tables whose type names a function type."""
    untyped: set[int] = field(default_factory=set)
    """Named in elements, globals and tables of `funcref`."""
    declared: set[int] = field(default_factory=set)
    """Named without a reference being made: exports, declarative elements."""

    @property
    def all(self) -> set[int]:
        return self.typed | self.untyped | self.declared

    def add(self, functions: set[int], *, entry: int) -> None:
        (self.untyped if entry == FUNCREF else self.typed).update(functions)


def check_references(
    parts: ReferenceParts,
    imports: Sequence[Import],
    exports: Sequence[Export],
    *,
    data: bytes,
    validation: Validation,
    limits: Limits,
) -> None:
    """Raise ContentRejected (`EnvoyCrash`) unless no host function is called by reference.

    Blocks: mostly a millisecond; 40 ms for each MB of code if something names host functions; seconds if the module uses
    function references besides. Raises `TooLarge` if there is more code than the limit allows, and `WasmInvalid`.
    """
    imported = [each for each in imports if each.kind == sections.FUNCTION]
    named = _named(parts, len(imported), exports, limits=limits)
    if not named.all:
        return
    if not validation.unchecked and calls_no_reference(data):
        return
    code = parts.bodies()
    made = {
        operand
        for function in code.containing(bodies.REF_FUNC)
        for _, operand in code.read(function, _MADE)
    }
    callable_ = named.all & (made | named.typed)
    if named.untyped and (validation.unchecked or not casts_nothing(data)):
        callable_ |= named.untyped
    if not callable_:
        return
    callers: dict[int, int] = {}  # type index to the first function that calls one
    for function in sorted({f for byte in sorted(_CALLS) for f in code.containing(byte)}):
        for _, operand in code.read(function, _CALLS):
            callers.setdefault(operand, function + len(imported))
    types = {each: imported[each].type_index for each in callable_}
    signatures = parts.signatures({*types.values(), *callers})
    by_signature = {_comparable(signatures.get(each)): at for each, at in callers.items()}
    called = sorted(
        each
        for each, type_index in types.items()
        if _comparable(signatures.get(type_index)) in by_signature
    )
    if called:
        first = by_signature[_comparable(signatures.get(types[called[0]]))]
        names = listed([str(imported[each]) for each in called])
        raise ContentRejected(
            f"the module may call {names} by reference (call_ref, in function {first}), and an Envoy process crashes "
            "when a module calls one of its functions this way: build it without typed function references. For wasm-opt, "
            "omit -all and name the required features, or add --disable-gc (and in older releases "
            "--disable-typed-function-references)",
            reason=Reason.ENVOY_CRASH,
        )


def _comparable(signature: str | None) -> str:
    """A function type reduced to its numbers and the positions of references, which a subtype shares."""
    return (signature or "").replace("funcref", "ref").replace("externref", "ref")


def _named(
    parts: ReferenceParts, imported: int, exports: Sequence[Export], *, limits: Limits
) -> _Named:
    named = _Named()
    named.declared.update(
        each.index for each in exports if each.kind == sections.FUNCTION and each.index < imported
    )
    if reader := parts.reader(binary.ELEMENT):
        _read_elements(reader, imported, named, limits=limits)
    if reader := parts.reader(binary.GLOBAL):
        for _ in range(reader.u32()):
            entry = read_value_type(reader)
            reader.byte()  # mutability
            named.add(_functions(reader, imported, limits=limits), entry=entry)
    if reader := parts.reader(binary.TABLE):
        for _ in range(reader.u32()):
            table, has_value = read_table(reader)
            if has_value:
                named.add(_functions(reader, imported, limits=limits), entry=table.entry)
    return named


def _functions(reader: BinaryReader, imported: int, *, limits: Limits) -> set[int]:
    """The imported functions that one constant expression refers to."""
    constants = Constants(reader, limits=limits)
    constants.skip()
    return {each for each in constants.functions if each < imported}


def _read_elements(reader: BinaryReader, imported: int, named: _Named, *, limits: Limits) -> None:
    constants = Constants(reader, limits=limits)
    left = limits.type_parts
    for _ in range(reader.u32()):
        flags = reader.u32()
        if not flags & _PASSIVE:
            if flags & _EXPLICIT:
                reader.u32()  # the table
            constants.skip()
        entry = FUNCREF
        if flags & (_PASSIVE | _EXPLICIT):
            if flags & _EXPRESSIONS:
                entry = read_value_type(reader)
            else:
                reader.byte()  # the kind; only one exists
        size = reader.u32()
        left -= size
        if left < 0:  # no compiler writes that many; nothing is proven about them
            named.add(set(range(imported)), entry=0)
            return
        if flags & _EXPRESSIONS:
            constants.functions.clear()
            for _ in range(size):
                constants.skip()
            found = {each for each in constants.functions if each < imported}
        else:
            found = {each for _ in range(size) if (each := reader.u32()) < imported}
        if flags & _DECLARATIVE == _DECLARATIVE:
            named.declared |= found
        else:
            named.add(found, entry=entry)
