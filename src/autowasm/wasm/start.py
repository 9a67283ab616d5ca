"""Start of a module: checks whether its active segments and its start functions are certain to fail in Envoy.

A filter is a library (a WASI reactor, with `_initialize`). A program (a WASI command, with `_start`) that ends with
`proc_exit` fails in Envoy with `restricted_callback`: during the start Envoy allows only a few host functions
(proxy-wasm-cpp-host, src/wasm.cc `WasmBase::startVm`; `abi.ALLOWED_AT_START` is what Envoy 1.36.4 and 1.40.0 allow, each
function tried). A module with `_start` that returns is fine: TinyGo, older Rust filters and AssemblyScript have one.

The module is not run. Invariants: a segment is refused only if it is certain to trap: it is active, at a fixed offset, and
ends beyond the initial size of its memory or table; a start is refused only if it is proven to fail: Go's linker left its
mark in a program, or no path through the start function returns without a trap or a forbidden call.

Source: WebAssembly Core Specification 3.0, sections 5.5.12 "Element Section", 5.5.14 "Data Section" and 4.7.2 "Instantiation".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.reasons import Reason
from autowasm.text import shown
from autowasm.wasm import abi, bodies, sections
from autowasm.wasm.binary import BinaryReader, invalid
from autowasm.wasm.bodies import Bodies
from autowasm.wasm.sections import Constants, Export, Import, Storage, read_value_type

_PAGE: Final = 65_536
_PASSIVE, _EXPLICIT, _EXPRESSIONS = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Segment:
    """An active segment with a fixed offset. `offset` and `size` in bytes of the memory `target`, or entries of the table."""

    number: int
    target: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset after its last byte or entry."""
        return self.offset + self.size


def read_data(reader: BinaryReader, *, limits: Limits) -> Iterator[Segment]:
    """The data segments with fixed offsets. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
    constants = Constants(reader, limits=limits)
    for number in range(reader.u32()):
        flags = reader.u32()
        target = reader.u32() if flags & _EXPLICIT else 0
        offset = None if flags & _PASSIVE else constants.address()
        size = reader.u32()
        reader.skip(size)
        if offset is not None:
            yield Segment(number, target, offset, size)


def read_elements(reader: BinaryReader, *, limits: Limits) -> Iterator[Segment]:
    """The element segments with fixed offsets, within the first `limits.type_parts` elements. Raises as `read_data`."""
    constants = Constants(reader, limits=limits)
    left = limits.type_parts
    for number in range(reader.u32()):
        flags = reader.u32()
        is_active = not flags & _PASSIVE
        target = reader.u32() if is_active and flags & _EXPLICIT else 0
        offset = constants.address() if is_active else None
        if flags & (_PASSIVE | _EXPLICIT):
            read_value_type(reader) if flags & _EXPRESSIONS else reader.byte()
        size = reader.u32()
        if offset is not None:
            yield Segment(number, target, offset, size)
        left -= size
        if left < 0:
            return  # later segments are not checked; no compiler writes that many elements
        for _ in range(size):
            constants.skip() if flags & _EXPRESSIONS else reader.u32()


def check_segments(kind: str, segments: Iterable[Segment], storages: Sequence[Storage]) -> None:
    """Raise ContentRejected (`WasmInvalid`) for the first segment that does not fit. `storages`: the imported ones first."""
    for each in segments:
        storage = storages[each.target]  # validation has checked that it exists
        if kind == sections.MEMORY:
            what, unit, room = "data segment", "bytes", storage.minimum * _PAGE
        else:
            what, unit, room = "element segment", "entries", storage.minimum
        if each.end > room:
            raise ContentRejected(
                f"the module's {what} {each.number} ends at {each.end}, but the initial {kind} has {room} {unit}, "
                f"and Envoy fails to start such a module: increase the initial {kind}, or build it again",
                reason=Reason.WASM_INVALID,
            )


_GO_RUNTIME: Final = b"runtime.gcBgMarkWorker\0"
"""A name in the function table (pclntab) that Go's linker writes into the data, and TinyGo's does not. `strip` keeps it."""

GO_ADVICE: Final = "build it with `GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o filter.wasm .` (Go 1.24 or later)"
_LIBRARY_ADVICE: Final = (
    "build a library instead, without main(): -mexec-model=reactor for clang, wasi-sdk and `zig cc`, "
    "--no-entry -sSTANDALONE_WASM for emcc, crate-type cdylib for Rust, -buildmode=c-shared for TinyGo"
)

_TRAP: Final = "unreachable"
_CALLED_FIRST: Final = frozenset({"_initialize", "main", "__main_void", "_start"})
_MAX_FUNCTIONS: Final = 200
_MAX_DEPTH: Final = 20
"""The number of functions that are read for the start functions, and the depth to which calls are followed; real proofs need a handful."""
_OPENING: Final = frozenset({bodies.BLOCK, bodies.LOOP, bodies.IF, bodies.TRY, bodies.TRY_TABLE})
_ALTERNATIVES: Final = frozenset({bodies.ELSE, bodies.CATCH, bodies.CATCH_ALL})
_CLOSING: Final = frozenset({bodies.END, bodies.DELEGATE})
_LEAVING: Final = frozenset({bodies.BR, bodies.BR_TABLE})
_BRANCHES: Final = _LEAVING | {
    *(bodies.BR_IF, bodies.BR_ON_NULL, bodies.BR_ON_NON_NULL, bodies.BR_ON_CAST),
    bodies.BR_ON_CAST_FAIL,
}
_RETURNS: Final = frozenset(
    {bodies.RETURN, bodies.RETURN_CALL, bodies.RETURN_CALL_INDIRECT, bodies.RETURN_CALL_REF}
)
_TRAPPING: Final = frozenset({bodies.UNREACHABLE, bodies.THROW, bodies.THROW_REF, bodies.RETHROW})
_FOLLOWED: Final = (
    frozenset({bodies.CALL})
    | (_OPENING | _ALTERNATIVES | _CLOSING)
    | (_BRANCHES | _RETURNS | _TRAPPING)
)


class StartParts(Protocol):
    """The sections of the module."""

    def bodies(self) -> Bodies:
        """The code section."""


def is_go(data: bytes) -> bool:
    """Whether Go's own toolchain (not TinyGo) built the module."""
    return _GO_RUNTIME in data


def check_start(
    parts: StartParts, imports: Sequence[Import], exports: Sequence[Export], *, data: bytes
) -> None:
    """Raise ContentRejected (`StartFails`) if the start of the module is certain to fail in Envoy. Blocks: milliseconds."""
    functions = {
        each.name: each.index
        for each in exports
        if each.name in _CALLED_FIRST and each.kind == sections.FUNCTION
    }
    if not functions:
        return
    is_program = "_initialize" not in functions
    if is_go(data):
        if not is_program or "_start" not in functions:
            return  # nothing can be proven about Go's runtime, which jumps by a table
        raise ContentRejected(
            "the module is a Go program, and Envoy fails to start one (its _start ends with proc_exit, a restricted "
            f"callback while a module starts): {GO_ADVICE}",
            reason=Reason.START_FAILS,
        )
    imported = [str(each) for each in imports if each.kind == sections.FUNCTION]
    starts: _Starts | None = None
    for name in _started(functions):
        starts = starts or _Starts(parts.bodies(), imported)
        failure = starts.failure(functions[name])
        if failure is None:
            continue
        if is_program:
            advice = f"the module seems to be a program: {_LIBRARY_ADVICE}"
        else:
            advice = "move the call to proxy_on_vm_start or proxy_on_configure, or remove it"
        what = (
            "traps"
            if failure == _TRAP
            else f"calls {shown(failure)}, which is restricted at that time"
        )
        raise ContentRejected(
            f"Envoy fails to start the module: {name} always {what}; {advice}",
            reason=Reason.START_FAILS,
        )


def _started(functions: Mapping[str, int]) -> Iterator[str]:
    """The exports that Envoy calls at the start, in order."""
    if "_initialize" in functions:
        yield "_initialize"
        if "main" in functions:
            yield "main"
        elif "__main_void" in functions:
            yield "__main_void"  # Envoy 1.40 calls it, 1.36.4 does not
    elif "_start" in functions:
        yield "_start"


class _Starts:
    """Follows the code from the start functions to find the functions that never return normally, and why.

    A body is followed block by block: `is_clean` is true while a path without a failing instruction reaches the current
    instruction. A call that is not followed counts as one that returns.
    """

    def __init__(self, code: Bodies, imported: Sequence[str]) -> None:
        self._code = code
        self._imported = imported
        self._known: dict[int, str | None] = {}

    def failure(self, function: int, *, depth: int = 0) -> str | None:
        """The reason why `function` never returns: a host function's name, or `_TRAP`. None if it may return."""
        if function < len(self._imported):
            name = self._imported[function]
            fails = name in abi.HOST_FUNCTIONS and name not in abi.ALLOWED_AT_START
            return name if fails else None
        if function not in self._known:
            if depth > _MAX_DEPTH or len(self._known) >= _MAX_FUNCTIONS:
                return None
            self._known[function] = (
                None  # while it is read, and permanently if reading it would exceed the limits
            )
            with _too_large_proves_nothing():
                self._known[function] = self._follow(function, depth)
        return self._known[function]

    def _follow(self, function: int, depth: int) -> str | None:
        """One pass over a body."""
        paths = _Paths()
        causes = []
        body = function - len(self._imported)
        for instruction, operand in self._code.read(body, _FOLLOWED):
            cause = None
            if paths.is_clean and instruction in (bodies.CALL, bodies.RETURN_CALL):
                cause = self.failure(operand, depth=depth + 1)
            elif paths.is_clean and instruction in _TRAPPING:
                cause = _TRAP
            if cause:
                causes.append(cause)
                paths.is_clean = False
            else:
                paths.follow(instruction, operand)
        if paths.is_clean or not causes:  # an endless loop has no cause
            return None
        return next((each for each in causes if each != _TRAP), _TRAP)


@dataclass(slots=True)
class _Block:
    """An open block. `left_clean`: a branch to its end is reached without a failing instruction."""

    entered_clean: bool = True
    opened_by: int = bodies.BLOCK
    left_clean: bool = False
    has_else: bool = False


class _Paths:
    """Whether the current instruction of a body, and finally its end, can be reached without a failing instruction."""

    def __init__(self) -> None:
        self.is_clean = True
        self._blocks = [_Block()]  # the body itself is the outermost

    def follow(self, instruction: int, operand: int) -> None:
        """Follow one instruction that does not fail. Raises ContentRejected (`WasmInvalid`) where blocks do not nest."""
        if not self._blocks:
            raise invalid("a function body that continues after its end", at=0)
        if instruction in _OPENING:
            if instruction == bodies.TRY_TABLE and operand >= 0:
                self._branch(operand, several=True)
            self._blocks.append(_Block(self.is_clean, instruction))
        elif instruction in _CLOSING:
            self._close()
        elif instruction in _ALTERNATIVES:
            block = self._blocks[-1]
            block.left_clean |= self.is_clean
            block.has_else |= instruction == bodies.ELSE
            self.is_clean = block.entered_clean
        elif instruction in _BRANCHES:
            self._branch(operand, several=instruction == bodies.BR_TABLE)
            self.is_clean &= instruction not in _LEAVING
        elif instruction in _RETURNS:
            self._blocks[0].left_clean |= self.is_clean
            self.is_clean = False

    def _close(self) -> None:
        block = self._blocks.pop()
        self.is_clean |= block.left_clean
        if block.opened_by == bodies.IF and not block.has_else:
            self.is_clean |= block.entered_clean

    def _branch(self, label: int, *, several: bool) -> None:
        """Branch to `label`; with `several` to any block up to it, because only the greatest label is known."""
        if label >= len(self._blocks):
            raise invalid(
                f"a branch to label {label} in a block of depth {len(self._blocks)}", at=0
            )
        first = len(self._blocks) - 1 - label
        for block in self._blocks[first:] if several else [self._blocks[first]]:
            if block.opened_by != bodies.LOOP:  # backwards, to a place that was clean before
                block.left_clean |= self.is_clean


@contextmanager
def _too_large_proves_nothing() -> Iterator[None]:
    """Suppress `TooLarge`: without reading the whole body nothing is proven."""
    try:
        yield
    except ContentRejected as error:
        if error.reason != Reason.TOO_LARGE:
            raise
