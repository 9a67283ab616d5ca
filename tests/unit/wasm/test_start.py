"""A start function is accepted unless a failure is proven, also where the proof would exceed the limits."""

from collections.abc import Callable

import pytest

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.wasm.module import inspect_bytes

_PLAIN = """
(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
(memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param i32) (result i32) (i32.const 1024))
"""


def _reason(module: bytes, **limits: int) -> str:
    try:
        inspect_bytes(module, limits=Limits(**limits), allow_imports=frozenset())
    except ContentRejected as error:
        return error.reason
    return ""


def _chain(length: int) -> str:
    """A start function that reaches the end of the program over `length` others."""
    functions = "".join(f"(func $f{n} (call $f{n + 1}))" for n in range(length))
    return f'{functions}(func $f{length} (call $exit (i32.const 0)))(func (export "_start") (call $f0))'


@pytest.mark.parametrize(("length", "reason"), [(0, "StartFails"), (10, "StartFails"), (1000, "")])
def test_calls_are_followed_to_some_depth(
    compile_text: Callable[[str], bytes], length: int, reason: str
) -> None:
    assert _reason(compile_text(f"(module {_PLAIN}{_chain(length)})")) == reason


def test_functions_that_call_each_other_prove_nothing(compile_text: Callable[[str], bytes]) -> None:
    text = '(func $a (call $b)) (func $b (call $a)) (func (export "_start") (call $a))'
    assert _reason(compile_text(f"(module {_PLAIN}{text})")) == ""


def test_too_much_code_proves_nothing(compile_text: Callable[[str], bytes]) -> None:
    module = compile_text(f"(module {_PLAIN}{_chain(0)})")
    assert _reason(module, body_bytes=1) == ""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("(try (do (call $exit (i32.const 0))) (catch_all))", ""),  # the host's error may be caught
        ("(try (do (throw $t)) (catch_all)) (call $exit (i32.const 0))", "StartFails"),
        ("(try (do (throw $t)) (catch_all))", ""),
        ("(throw $t)", "StartFails"),
    ],
)
def test_caught_exception_in_start_does_not_fail(
    compile_text: Callable[[str], bytes], body: str, reason: str
) -> None:
    text = f'(tag $t) (func (export "_start") {body})'
    assert _reason(compile_text(f"(module {_PLAIN}{text})")) == reason


_NOPS, _MALFORMED = b"\x06\x40\x01\x01\x01\x01\x19\x0b\x0b", "WasmInvalid"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_NOPS, ""),
        (_NOPS.replace(b"\x01\x01\x01\x01", b"\x0c\x01\x01\x01"), ""),
        (_NOPS.replace(b"\x01\x01\x01\x01", b"\x0c\x07\x01\x01"), _MALFORMED),  # a label of none
        (_NOPS.replace(b"\x01\x01\x01\x01", b"\x0b\x0b\x01\x01"), _MALFORMED),  # ends too early
    ],
    ids=["whole", "label", "no-label", "behind-the-end"],
)
def test_blocks_with_legacy_exceptions_have_to_nest(
    compile_text: Callable[[str], bytes], body: bytes, reason: str
) -> None:
    text = '(func (export "_start") (try (do nop nop nop nop) (catch_all)))'
    module = compile_text(f"(module {_PLAIN}{text})")
    assert module.count(_NOPS) == 1
    assert _reason(module.replace(_NOPS, body)) == reason


def test_main_without_arguments_is_started_too(compile_text: Callable[[str], bytes]) -> None:
    text = '(func (export "_initialize")) (func (export "__main_void") (result i32) unreachable)'
    assert _reason(compile_text(f"(module {_PLAIN}{text})")) == "StartFails"
