"""The engine compiles what Envoy's V8 runs, and exchanges compiled modules with itself."""

from collections.abc import Callable

import pytest

from autowasm.sandbox.engine import (
    Compiled,
    Engine,
    compile_module,
    deserialize,
    make_engine,
)
from autowasm.sandbox.errors import CannotCompile, CannotLoad
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.vm import Started, Vm
from tests.parts import wat
from tests.unit.sandbox.calling import module


def test_a_stored_module_runs_in_another_engine(compiled: Callable[[bytes], Compiled]) -> None:
    stored = compiled(module({})).serialize()
    assert isinstance(Vm(deserialize(make_engine(), stored), Plugin()).start(), Started)


@pytest.mark.parametrize("data", [b"", b"\0asm\1\0\0\0", b"junk" * 100])
def test_other_bytes_are_not_loaded(engine: Engine, data: bytes) -> None:
    with pytest.raises(CannotLoad):
        deserialize(engine, data)


def test_a_damaged_stored_module_is_not_loaded(compiled: Callable[[bytes], Compiled]) -> None:
    stored = bytearray(compiled(module({})).serialize())
    stored[:64] = bytes(64)
    with pytest.raises(CannotLoad):
        deserialize(make_engine(), bytes(stored))


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("(module (memory i64 1))", "64-bit memory"),
        ("(module (memory 1) (memory 1))", "several memories"),
        ("(module (memory 1 2 shared))", "shared memory"),
        ("(module (func $f (return_call $f)))", "tail calls"),
        ("(module (tag $t) (func (block $b (try_table (catch_all $b) (throw $t)))))", "exceptions"),
        ("(module (type $s (struct (field i32))) (func (param (ref null $s))))", "structures"),
        (
            "(module (type $f (func)) (func (param (ref null $f)) (call_ref $f (local.get 0))))",
            "references",
        ),
    ],
)
def test_features_of_envoys_engine_compile(engine: Engine, text: str, feature: str) -> None:
    assert compile_module(engine, wat.assemble(text)).serialize(), feature


@pytest.mark.parametrize(
    "module_",
    [
        b"",
        b"(module)",
        b"\0asm",
        b"\0asm\1\0\0\0\xff",
        wat.assemble(
            "(module (func (param i64 i64) (result i64 i64) (i64.mul_wide_u (local.get 0) (local.get 1))))"
        ),
        wat.compile_text("(module (func (try (do) (catch_all))))"),
        wat.compile_text('(module (func (export "f") (param v128)))'),
        wat.compile_text('(module (import "a" "f" (func (result v128))))'),
        wat.compile_text('(module (tag (export "t")))'),
        wat.assemble(
            '(module (type $s (struct)) (global (export "g") (ref null $s) (ref.null $s)))'
        ),
    ],
)
def test_module_that_cannot_be_compiled_raises_cannot_compile(
    engine: Engine, module_: bytes
) -> None:
    with pytest.raises(CannotCompile) as caught:
        compile_module(engine, module_)
    assert "\n" not in str(caught.value)
