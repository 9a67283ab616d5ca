"""Data and elements that a module puts into its memories and tables when it starts.

Not what they hold, nor a run of the module. Invariant: only what is sure to trap is refused: an active segment at a fixed
place, beyond the end of a memory or table as it is at the start. Envoy then fails to load the module, after having fetched it.

Source: WebAssembly Core Specification 3.0, sections 5.5.12 "Element Section", 5.5.14 "Data Section" and 4.7.2 "Instantiation".

What Envoy runs when it starts a module: whether that is sure to fail.

A filter is a library (a WASI reactor, with `_initialize`). A program (a WASI command, with `_start`) that ends with
`proc_exit` fails in Envoy with `restricted_callback`: while a module starts, Envoy allows it a few host functions only
(proxy-wasm-cpp-host, src/wasm.cc `WasmBase::startVm`; the list below is what Envoy 1.36.4 and 1.40.0 allow, each function
tried). A module with `_start` that returns is fine: TinyGo, older Rust filters and AssemblyScript have one.

Not a run of the module. Invariant: a module is refused only if its start is proven to fail: Go's linker left its mark in a
program, or no path through the start function returns without a trap or a call that Envoy does not allow there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.text import shown
from autowasm.wasm import abi, bodies, sections
from autowasm.wasm.binary import BinaryReader, invalid
from autowasm.wasm.bodies import Bodies
from autowasm.wasm.sections import Constants, Export, Import, Storage, read_value_type

_PAGE: Final = 65_536
_PASSIVE, _EXPLICIT, _EXPRESSIONS = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Segment:
    """One that is put at a fixed place. `offset` and `size` in bytes of the memory, or entries of the table, `target`."""

    number: int
    target: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + self.size


def read_data(reader: BinaryReader, *, limits: Limits) -> Iterator[Segment]:
    """The data segments at fixed places. Raises ContentRejected: `TooLarge`, `WasmInvalid`."""
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
    """The element segments at fixed places, of the first `limits.type_parts` elements. Raises as `read_data`."""
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
            return  # what comes after is not looked at; no compiler writes so many
        for _ in range(size):
            constants.skip() if flags & _EXPRESSIONS else reader.u32()


def check_segments(kind: str, segments: Iterable[Segment], storages: Sequence[Storage]) -> None:
    """Raise ContentRejected (`WasmInvalid`) over the first that does not fit. `storages` with the imported ones first."""
    for each in segments:
        storage = storages[each.target]  # validation has found it to be there
        if kind == sections.MEMORY:
            what, unit, room = "data segment", "bytes", storage.minimum * _PAGE
        else:
            what, unit, room = "element segment", "entries", storage.minimum
        if each.end > room:
            raise ContentRejected(
                f"the module's {what} {each.number} ends at {each.end} of a {kind} that begins with {room} {unit}, "
                f"and Envoy fails to start such a module: make the initial {kind} larger, or build it again",
                reason="WasmInvalid",
            )


_GO_RUNTIME: Final = b"runtime.gcBgMarkWorker\0"
"""A name in the table of functions (pclntab) that Go's own linker puts into the data, TinyGo's not; `strip` leaves it there."""

GO_ADVICE: Final = "build it with `GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o filter.wasm .` (Go 1.24 or later)"
_LIBRARY_ADVICE: Final = (
    "build a library instead, without main(): -mexec-model=reactor for clang, wasi-sdk and `zig cc`, "
    "--no-entry -sSTANDALONE_WASM for emcc, crate-type cdylib for Rust, -buildmode=c-shared for TinyGo"
)

_TRAP: Final = "unreachable"
_CALLED_FIRST: Final = frozenset({"_initialize", "main", "__main_void", "_start"})
_LOOKED_INTO: Final = 200
_DEEPEST: Final = 20
"""Functions that are read from a start function on, and how deep calls are followed; real proofs need a handful."""
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
    """Raise ContentRejected (`StartFails`) if Envoy is sure to fail when it starts the module. Blocks: milliseconds."""
    functions = {
        each.name: each.index
        for each in exports
        if each.name in _CALLED_FIRST and each.kind == sections.FUNCTION
    }
    is_program = "_initialize" not in functions
    if is_go(data):
        if not is_program or "_start" not in functions:
            return  # nothing can be proven of Go's runtime, which jumps by a table
        raise ContentRejected(
            "the module is a Go program, and Envoy fails to start one (its _start ends with proc_exit, a restricted "
            f"callback while a module starts): {GO_ADVICE}",
            reason="StartFails",
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
            "traps" if failure == _TRAP else f"calls {shown(failure)}, a restricted callback then"
        )
        raise ContentRejected(
            f"Envoy fails to start the module: {name} always {what}; {advice}", reason="StartFails"
        )


def _started(functions: Mapping[str, int]) -> Iterator[str]:
    """The exports that Envoy calls at first, in order."""
    if "_initialize" in functions:
        yield "_initialize"
        if "main" in functions:
            yield "main"
        elif "__main_void" in functions:
            yield "__main_void"  # Envoy 1.40 calls it, 1.36.4 does not
    elif "_start" in functions:
        yield "_start"


class _Starts:
    """Follows the code from the start functions on: which functions never return normally, and why.

    A function is followed path by path in the sense of its blocks: `is_clean` says whether the current place can be
    reached without anything that fails. A call that is not looked into is taken to return.
    """

    def __init__(self, code: Bodies, imported: Sequence[str]) -> None:
        self._code = code
        self._imported = imported
        self._known: dict[int, str | None] = {}

    def failure(self, function: int, *, depth: int = 0) -> str | None:
        """Why `function` never returns: a host function's name, or `_TRAP`. None if it may return."""
        if function < len(self._imported):
            name = self._imported[function]
            fails = name in abi.HOST_FUNCTIONS and name not in abi.ALLOWED_AT_START
            return name if fails else None
        if function not in self._known:
            if depth > _DEEPEST or len(self._known) >= _LOOKED_INTO:
                return None
            self._known[function] = (
                None  # while it is looked into, and for good if too much would have to be read
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
    """A block that is open. `left_clean`: whether a branch reaches its end without anything that fails."""

    entered_clean: bool = True
    opened_by: int = bodies.BLOCK
    left_clean: bool = False
    has_else: bool = False


class _Paths:
    """Whether the current place of a body, and at last its end, can be reached without anything that fails."""

    def __init__(self) -> None:
        self.is_clean = True
        self._blocks = [_Block()]  # the body itself is the outermost

    def follow(self, instruction: int, operand: int) -> None:
        """Pass one instruction that does not fail. Raises ContentRejected (`WasmInvalid`) where blocks do not nest."""
        if not self._blocks:
            raise invalid("a function body that goes on behind its end", at=0)
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
        """To `label`, or to any block up to it: of several labels only the greatest is known."""
        if label >= len(self._blocks):
            raise invalid(
                f"a branch to label {label} in a block of depth {len(self._blocks)}", at=0
            )
        first = len(self._blocks) - 1 - label
        for block in self._blocks[first:] if several else [self._blocks[first]]:
            if block.opened_by != bodies.LOOP:  # that is a way back, to where it was clean before
                block.left_clean |= self.is_clean


@contextmanager
def _too_large_proves_nothing() -> Iterator[None]:
    """Let nothing be proven where more would have to be read than is allowed."""
    try:
        yield
    except ContentRejected as error:
        if error.reason != "TooLarge":
            raise
