"""Legacy exception handling (`try`, `catch`), which Envoy's V8 runs and wasmtime does not know.

Not a validator of it: the bodies that use it are found and taken out of the module, so that wasmtime can check all the
rest. Invariant: no byte outside of those bodies changes, and the positions in wasmtime's messages stay true.

V8 refuses a module that has both forms of exception handling, seen on Envoy 1.36.4 and 1.40.0
(tests/e2e/test_wasm_envoy.py). Such modules come from objects or libraries that were compiled with different flags.

Validation by wasmtime: what a walk over the sections cannot see, above all malformed function bodies.

Not a compilation: that takes seconds and a host's memory. Invariants: the engine's features are those that Envoy's V8
has, so that a module which passes here parses there; what could not be checked is returned, never passed over in
silence; the interpreter lock is released while wasmtime works.

Features, each tried on Envoy 1.36.4 and 1.40.0: both run SIMD and relaxed SIMD, bulk memory, reference types, function
references, garbage-collected types, multi-value, multi-memory, 64-bit memory, shared memory and atomics, tail calls,
extended constants, exceptions both of the legacy form (`try`) and the new (`try_table`), but not both in one module.
Both refuse wide arithmetic, custom page sizes, stack switching and compact imports (`sections.py` knows those). Wasmtime does not know legacy
exceptions: the functions that use them are not checked (`validation.py`, ADR 0028).
"""

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.text import shown
from autowasm.wasm import binary, bodies
from autowasm.wasm.bodies import Bodies

if TYPE_CHECKING:
    from wasmtime import Engine


_LEGACY = frozenset({bodies.TRY})
"""`catch`, `catch_all`, `rethrow` and `delegate` are only valid within a `try`."""
_NEW = frozenset({bodies.TRY_TABLE, bodies.THROW_REF})
_FORMS = _LEGACY | _NEW
_NOP, _UNREACHABLE = b"\x01", b"\0"
_NO_LOCALS, _END = b"\0", b"\x0b"

LEGACY_ADVICE = (
    "compile everything with -mllvm -wasm-use-legacy-eh=false, or translate it with `wasm-opt "
    "--enable-exception-handling --enable-reference-types --enable-multivalue --translate-to-exnref`"
)


@dataclass(frozen=True, slots=True)
class WithoutLegacy:
    """A module whose functions with legacy exception handling are replaced by ones that only trap.

    `functions` count from the first that is not imported; `total` is the number of all that the module defines.
    """

    data: bytes
    functions: frozenset[int]
    total: int


def without_legacy(data: bytes, *, limits: Limits) -> WithoutLegacy:
    """Replace the functions of `data` that use legacy exception handling.

    Blocks: about a second for 3 MB of code. Raises ContentRejected: `WasmInvalid` for a mixture of both forms or a
    malformed body, `TooLarge` for more code than is read.
    """
    section = next(s for s in binary.sections(data, most=limits.sections) if s.id == binary.CODE)
    code = Bodies(section, data, limits=limits)
    legacy: set[int] = set()
    new: set[int] = set()
    for function in range(len(code)):
        for instruction, _ in code.read(function, _FORMS):
            (legacy if instruction in _LEGACY else new).add(function)
    if legacy and new:
        raise ContentRejected(
            f"the module has legacy exception handling (try) in {len(legacy)} of its functions and the new one "
            f"(try_table, throw_ref) in {len(new)}, and Envoy refuses such a mixture: {LEGACY_ADVICE}",
            reason="WasmInvalid",
        )
    changed = bytearray(data)
    for function in legacy:
        start, end = code.span(function)
        nops = _NOP * (end - start - 3)
        changed[start:end] = _NO_LOCALS + _UNREACHABLE + nops + _END
    return WithoutLegacy(bytes(changed), frozenset(legacy), len(code))


_NONE: frozenset[int] = frozenset()
_LEGACY_SIGN = "legacy_exceptions"


@dataclass(frozen=True, slots=True)
class Validation:
    """The result for a module in which no fault was found.

    `unchecked` are the functions whose bodies were not checked, counted from the first that is not imported; `total` is
    the number of functions that the module defines, 0 where all were checked.
    """

    unchecked: frozenset[int] = _NONE
    total: int = 0

    def __str__(self) -> str:
        """What was not checked, in one sentence; empty when everything was."""
        if not self.unchecked:
            return ""
        return (
            f"{len(self.unchecked)} of {self.total} function bodies were not validated: they use legacy exception "
            "handling, which Envoy runs and wasmtime does not know"
        )


def validate(data: bytes, *, limits: Limits) -> Validation:
    """Raise ContentRejected unless `data` is valid, as far as it can be checked. Blocks: 40 ms for each MB of code.

    A module with legacy exception handling is read by Python code, too: about a second for 3 MB of code. Reasons:
    `WasmInvalid`, and `TooLarge` when there is more such code than is read.
    """
    problem = _problem(data)
    if not problem:
        return Validation()
    if _LEGACY_SIGN in problem:
        reduced = without_legacy(data, limits=limits)
        problem = _problem(reduced.data)
        if not problem:
            return Validation(reduced.functions, reduced.total)
    raise ContentRejected(
        f"the module is not valid WebAssembly, Envoy would refuse it: {shown(problem, most=300)}; build it again",
        reason="WasmInvalid",
    )


def calls_no_reference(data: bytes) -> bool:
    """Whether wasmtime finds `data` valid without function references, so that it has no `call_ref` at all."""
    return not _problem(data, function_references=False)


def casts_nothing(data: bytes) -> bool:
    """Whether wasmtime finds `data` valid without garbage-collected types, so that it has no `ref.cast` at all."""
    return not _problem(data, gc=False)


def _problem(data: bytes, *, function_references: bool = True, gc: bool = True) -> str:
    """What wasmtime has against `data`; empty for nothing."""
    # Imported here: 50 ms and 30 MB that `wasmc --help` does not need.
    from wasmtime import WasmtimeError, _ffi  # noqa: PLC0415

    # Module.validate would copy `data` first, and 32 MiB hold the interpreter lock for 26 ms. This is what it calls then.
    start = ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
    engine = _engine(function_references=function_references, gc=gc)
    problem = _ffi.wasmtime_module_validate(engine.ptr(), start, len(data))
    return str(WasmtimeError._from_ptr(problem)) if problem else ""


def _engine(*, function_references: bool, gc: bool) -> "Engine":
    """An engine, made anew each time: that takes less than 0.1 ms, and nothing is kept."""
    from wasmtime import Config, Engine  # noqa: PLC0415

    config = Config()
    config.wasm_wide_arithmetic = False
    config.wasm_custom_page_sizes = False
    config.wasm_stack_switching = False
    config.wasm_function_references = function_references
    config.wasm_gc = gc
    return Engine(config)
