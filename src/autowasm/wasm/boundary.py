"""What a module exchanges with its host, of types that Envoy's V8 cannot name or create.

Not a comparison of functions with Envoy's own (`module.py`). Invariant: a module that passes does not abort the proxy by
its types: V8's C API (`wasm-c-api`, by which Envoy asks for all imports and exports, called or not) ends the whole process
over any value type but numbers, funcref and externref, over a tag, and over tables that it cannot allocate.

Seen on Envoy 1.36.4 and 1.40.0; tests/e2e/test_wasm_envoy.py asks them again.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.text import shown
from autowasm.wasm import sections
from autowasm.wasm.sections import Export, Import
from autowasm.wasm.storage import Storage
from autowasm.wasm.values import EXTERNREF, FUNCREF, KNOWN_TO_HOST

_REFERENCES: Final = frozenset({FUNCREF, EXTERNREF})


class Parts(Protocol):
    """What has to be known of a module's own definitions. Indices count from the first that is not imported."""

    def storages(self, kind: str) -> list[Storage]:
        """Its memories, or its tables."""

    def global_types(self, wanted: set[int]) -> dict[int, int]:
        """The codes of the types of these globals."""

    def function_types(self, wanted: set[int]) -> dict[int, int]:
        """The type indices of these functions."""

    def find_linked_type(self, wanted: set[int]) -> int | None:
        """The first of these types that belongs to a group of several, is open, or has a supertype."""

    def find_unknown_type(self, wanted: set[int]) -> int | None:
        """The first of these function types that has a value which is not `KNOWN_TO_HOST`."""


def check_boundary(
    parts: Parts, imports: Sequence[Import], exports: Sequence[Export], *, limits: Limits
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


def _check_sizes(parts: Parts, imports: Sequence[Import], *, limits: Limits) -> None:
    """Refuse memories and tables that Envoy's V8 does not create; tables count together, memories are only reserved."""
    for kind, most, unit in (
        (sections.MEMORY, limits.memory_pages, "pages of 64 KiB"),
        (sections.TABLE, limits.table_entries, "entries"),
    ):
        imported = [each.storage for each in imports if each.kind == kind and each.storage]
        minimums = [each.minimum for each in (*imported, *parts.storages(kind))]
        size = sum(minimums) if kind == sections.TABLE else max(minimums, default=0)
        if size > most:
            raise ContentRejected(
                f"the module's {kind} begins with {size} {unit}, and Envoy gives at most {most}: "
                "make the initial size smaller",
                reason="TooLarge",
            )
    for memory in parts.storages(sections.MEMORY):
        if memory.is_64_bit and (memory.maximum or 0) > limits.memory_pages_64:
            raise ContentRejected(
                f"the module's 64-bit memory may grow to {memory.maximum} pages of 64 KiB, and Envoy takes at "
                f"most {limits.memory_pages_64}: make the maximum smaller",
                reason="TooLarge",
            )


def _check_imported(each: Import, storage: Storage, *, limits: Limits) -> None:
    """Envoy creates what a module imports of these, if it can."""
    if storage.is_64_bit or storage.is_shared:
        problem = "64-bit" if storage.is_64_bit else "shared"
    elif each.kind == sections.TABLE and storage.entry not in _REFERENCES:
        problem = "of entries that are neither funcref nor externref"
    elif each.kind == sections.TABLE and (storage.maximum or 0) > limits.table_entries:
        problem = f"of a maximum above {limits.table_entries}"
    else:
        return
    raise ContentRejected(
        f"the module imports the {each.kind} {shown(str(each))}, which is {problem}, and Envoy cannot "
        f"create such a one: define the {each.kind} in the module",
        reason="ImportMismatch",
    )


def _check_functions(parts: Parts, imports: Sequence[Import], exports: Sequence[Export]) -> None:
    imported = [each.type_index for each in imports if each.kind == sections.FUNCTION]
    linked = parts.find_linked_type(set(imported))
    for each in imports:
        if each.kind == sections.FUNCTION and each.type_index == linked:
            raise ContentRejected(
                f"the module imports the function {shown(str(each))} with a type that belongs to a group of types or "
                "may have subtypes, and Envoy cannot link it: give it a type of its own (in wasm-opt: leave out -all, "
                "or add --disable-gc)",
                reason="ImportMismatch",
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
                f"the module imports the function {shown(str(each))} with a type that Envoy crashes over: only "
                "i32, i64, f32, f64, funcref and externref may pass between a module and Envoy",
                reason="ImportMismatch",
            )
    for export in exports:
        if export.kind == sections.FUNCTION and own.get(export.index - first) == unknown:
            raise _crashes(f"exports the function {shown(export.name)}, with another type")


def _crashes(what: str) -> ContentRejected:
    return ContentRejected(
        f"the module {what}, and Envoy crashes when it loads such a one: only i32, i64, f32, f64, funcref and "
        "externref may be exported; do not export it (it may stay in the module)",
        reason="ExportMismatch",
    )
