"""Calls of host functions by reference, over which Envoy crashes.

`call_ref` and `return_call_ref` on a function that the module imports end the whole Envoy process with a segmentation
fault (seen on 1.36.4 and 1.40.0; tests/e2e/test_wasm_envoy.py asks them again). `call`, `call_indirect` and their tail
calls on the same function are fine. Binaryen writes such code: `wasm-opt -Oz -all` merges similar functions and hands the
functions in which they differ over as references.

Not an analysis of where values go. Invariant: a module passes only if one of these is proven, the cheap proofs first:

1. no reference to an imported function can exist: none is named by an element, a global, a table or an export, and
   without that a `ref.func` of it is not valid;
2. there is no `call_ref`: the module is valid without function references, in all bodies that were checked;
3. no reference that `call_ref` takes exists: no body has a `ref.func` of an imported function, and elements, globals and
   tables hold imported functions only as `funcref`, which a module without casts cannot turn into a typed reference;
4. no `call_ref` has the type of an imported function of which a reference exists.

ADR 0028 has the forms that were tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.text import listed
from autowasm.wasm import binary, bodies, sections
from autowasm.wasm.binary import Reader
from autowasm.wasm.bodies import Bodies
from autowasm.wasm.constants import Constants
from autowasm.wasm.sections import Export, Import
from autowasm.wasm.storage import read_table
from autowasm.wasm.validation import Validation, calls_no_reference, casts_nothing
from autowasm.wasm.values import FUNCREF, read_value_type

_PASSIVE, _EXPLICIT, _EXPRESSIONS = 1, 2, 4
_DECLARATIVE = _PASSIVE | _EXPLICIT
_CALLS = frozenset({bodies.CALL_REF, bodies.RETURN_CALL_REF})
_MADE = frozenset({bodies.REF_FUNC})


class Parts(Protocol):
    """The sections of the module."""

    def reader(self, section: int) -> Reader | None:
        """The content of a section that is not custom; None if it is absent."""

    def bodies(self) -> Bodies:
        """The code section."""

    def signatures(self, wanted: set[int]) -> dict[int, str]:
        """Function types in Envoy's notation, by their index."""


@dataclass(slots=True)
class _Named:
    """The imported functions to which the module refers outside of bodies."""

    typed: set[int] = field(default_factory=set)
    """In elements, globals and tables of a type that names a function type."""
    untyped: set[int] = field(default_factory=set)
    """In those of `funcref`."""
    declared: set[int] = field(default_factory=set)
    """Where no reference is made: exports, declarative elements."""

    @property
    def all(self) -> set[int]:
        return self.typed | self.untyped | self.declared

    def add(self, functions: set[int], *, entry: int) -> None:
        (self.untyped if entry == FUNCREF else self.typed).update(functions)


def check_references(
    parts: Parts,
    imports: Sequence[Import],
    exports: Sequence[Export],
    *,
    data: bytes,
    validation: Validation,
    limits: Limits,
) -> None:
    """Raise ContentRejected (`EnvoyCrash`) unless no host function is called by reference.

    Blocks: mostly a millisecond; 40 ms for each MB of code if host functions are named somewhere; seconds if function
    references are used besides. Raises `TooLarge` for more code than is read, and `WasmInvalid`.
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
            "when a module calls one of its functions so: build it without typed function references. For wasm-opt, "
            "leave out -all and name the features that are needed, or add --disable-gc (and in older releases "
            "--disable-typed-function-references)",
            reason="EnvoyCrash",
        )


def _comparable(signature: str | None) -> str:
    """A function type of which only numbers and the places of references count: a subtype's has the same."""
    return (signature or "").replace("funcref", "ref").replace("externref", "ref")


def _named(parts: Parts, imported: int, exports: Sequence[Export], *, limits: Limits) -> _Named:
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


def _functions(reader: Reader, imported: int, *, limits: Limits) -> set[int]:
    """The imported functions that one constant expression refers to."""
    constants = Constants(reader, limits=limits)
    constants.skip()
    return {each for each in constants.functions if each < imported}


def _read_elements(reader: Reader, imported: int, named: _Named, *, limits: Limits) -> None:
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
                reader.byte()  # a kind, of which there is one
        size = reader.u32()
        left -= size
        if left < 0:  # no compiler writes so many; then nothing is proven of them
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
