"""Legacy exception handling (`try`, `catch`), which Envoy's V8 runs and wasmtime does not know.

Not a validator of it: the bodies that use it are found and taken out of the module, so that wasmtime can check all the
rest. Invariant: no byte outside of those bodies changes, and the positions in wasmtime's messages stay true.

V8 refuses a module that has both forms of exception handling, seen on Envoy 1.36.4 and 1.40.0
(tests/e2e/test_wasm_envoy.py). Such modules come from objects or libraries that were compiled with different flags.
"""

from dataclasses import dataclass

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm import binary, bodies
from autowasm.wasm.bodies import Bodies

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
