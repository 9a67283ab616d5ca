"""Validation of a module by wasmtime, above all of its function bodies, which the section readers do not decode.

Nothing is compiled: that takes seconds and a lot of memory. Invariants: the engine has the features of Envoy's V8, so a
module that passes here parses there; unchecked parts are returned, never silently ignored; the interpreter lock
is released while wasmtime works.

Features, each tried on Envoy 1.36.4 and 1.40.0: both run SIMD and relaxed SIMD, bulk memory, reference types, function
references, garbage-collected types, multi-value, multi-memory, 64-bit memory, shared memory and atomics, tail calls,
extended constants, exceptions both of the legacy form (`try`) and the new (`try_table`), but not both in one module
(tests/e2e/test_wasm_envoy.py; objects or libraries compiled with different flags give such modules). Both refuse wide
arithmetic, custom page sizes, stack switching and compact imports (`sections.py` detects those).

Legacy exception handling (`try`, `catch`) runs in Envoy's V8, but wasmtime does not support it: the bodies that use it are
removed from the module and not checked (ADR 0028). Invariant: no byte outside those bodies changes, so the positions in
wasmtime's messages stay correct.
"""

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.reasons import Reason
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
    """A module in which functions that only trap replace those with legacy exception handling.

    `functions` count from the first that is not imported; `total` is the number of functions that the module defines.
    """

    data: bytes
    functions: frozenset[int]
    total: int


def without_legacy(data: bytes, *, limits: Limits) -> WithoutLegacy:
    """Replace the functions of `data` that use legacy exception handling.

    Blocks: about a second for 3 MB of code. Raises ContentRejected: `WasmInvalid` for a mixture of both forms or a
    malformed body, `TooLarge` if there is more code than the limit allows.
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
            f"the module has legacy exception handling (try) in {len(legacy)} of its functions and the new form "
            f"(try_table, throw_ref) in {len(new)}, and Envoy refuses the combination: {LEGACY_ADVICE}",
            reason=Reason.WASM_INVALID,
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
    """The result for a module without a detected fault.

    `unchecked` are the functions whose bodies were not checked, counted from the first that is not imported; `total` is
    the number of functions that the module defines, 0 if all were checked.
    """

    unchecked: frozenset[int] = _NONE
    total: int = 0

    def __str__(self) -> str:
        """One sentence about the unchecked bodies; empty if all were checked."""
        if not self.unchecked:
            return ""
        return (
            f"{len(self.unchecked)} of {self.total} function bodies were not validated: they use legacy exception "
            "handling, which Envoy supports and wasmtime does not"
        )


def validate(data: bytes, *, limits: Limits) -> Validation:
    """Raise ContentRejected unless `data` is valid, as far as it can be checked. Blocks: 40 ms for each MB of code.

    Python code also reads a module with legacy exception handling: about a second for 3 MB of code. Reasons: `WasmInvalid`,
    and `TooLarge` for more such code than the limit.
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
        f"the module is not valid WebAssembly, and Envoy would refuse it: {shown(problem, most=300)}; build it again",
        reason=Reason.WASM_INVALID,
    )


def calls_no_reference(data: bytes) -> bool:
    """Whether `data` is valid without function references, so that it has no `call_ref`."""
    return not _problem(data, function_references=False)


def casts_nothing(data: bytes) -> bool:
    """Whether `data` is valid without garbage-collected types, so that it has no `ref.cast`."""
    return not _problem(data, gc=False)


def _problem(data: bytes, *, function_references: bool = True, gc: bool = True) -> str:
    """Wasmtime's message if `data` is invalid, else empty."""
    # Imported here: 50 ms and 30 MB that `wasmc --help` does not need.
    from wasmtime import WasmtimeError, _ffi  # noqa: PLC0415

    # Module.validate would copy `data` first, which holds the interpreter lock for 26 ms at 32 MiB. This call is its second step.
    start = ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
    engine = _engine(function_references=function_references, gc=gc)
    problem = _ffi.wasmtime_module_validate(engine.ptr(), start, len(data))
    return str(WasmtimeError._from_ptr(problem)) if problem else ""


def _engine(*, function_references: bool, gc: bool) -> "Engine":
    """A new engine each time: that takes less than 0.1 ms, and nothing is kept."""
    from wasmtime import Config, Engine  # noqa: PLC0415

    config = Config()
    config.wasm_wide_arithmetic = False
    config.wasm_custom_page_sizes = False
    config.wasm_stack_switching = False
    config.wasm_function_references = function_references
    config.wasm_gc = gc
    return Engine(config)
