"""Validation by wasmtime: what a walk over the sections cannot see, above all malformed function bodies.

Not a compilation: that takes seconds and a host's memory. Invariants: the engine's features are those that Envoy's V8
has, so that a module which passes here parses there; the interpreter lock is released while wasmtime works.

Features, each tried on Envoy 1.36.4 and 1.40.0: both run SIMD and relaxed SIMD, bulk memory, reference types, function
references, garbage-collected types, multi-value, multi-memory, 64-bit memory, shared memory and atomics, tail calls,
extended constants, exceptions both of the old form (`try`) and the new (`try_table`). Both refuse wide arithmetic and
custom page sizes. Wasmtime does not know the old exceptions, so a module that uses them is refused, with its own advice.
"""

import ctypes
from typing import TYPE_CHECKING

from autowasm.errors import ContentRejected
from autowasm.wasm.wording import shown

if TYPE_CHECKING:
    from wasmtime import Engine


def validate(data: bytes) -> None:
    """Raise ContentRejected (`WasmInvalid`) unless `data` is a valid module. Blocks: about 40 ms for each MB of code."""
    # Imported here: 50 ms and 30 MB that `wasmc --help` does not need.
    from wasmtime import WasmtimeError, _ffi  # noqa: PLC0415

    # Module.validate would copy `data` first, and 32 MiB hold the interpreter lock for 26 ms. This is what it calls then.
    start = ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
    engine = _engine()
    problem = _ffi.wasmtime_module_validate(engine.ptr(), start, len(data))
    if problem:
        error = WasmtimeError._from_ptr(problem)
        raise ContentRejected(_advice(shown(str(error), most=300)), reason="WasmInvalid") from error


def _advice(problem: str) -> str:
    if "legacy_exceptions" in problem:
        return (
            "the module uses the old exception handling instructions (try, catch), which cannot be "
            "checked here: compile with -mllvm -wasm-use-legacy-eh=false, or translate it with "
            "`wasm-opt --translate-to-exnref`"
        )
    return f"the module is not valid WebAssembly, Envoy would refuse it: {problem}; build it again"


def _engine() -> "Engine":
    """An engine, made anew each time: that takes less than 0.1 ms, and nothing is kept."""
    from wasmtime import Config, Engine  # noqa: PLC0415

    config = Config()
    config.wasm_wide_arithmetic = False
    config.wasm_custom_page_sizes = False
    config.wasm_stack_switching = False
    return Engine(config)
