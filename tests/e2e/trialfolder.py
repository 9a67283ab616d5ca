"""A folder with modules for `wasmc run` and `wasmc test` with Envoy."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.parts import filters, wat
from tests.unit.cli import gate

PORT = """(module
(import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
(import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
(memory (export "memory") 2) (global $heap (mut i32) (i32.const 1024))
(data (i32.const 16) "source\\00address") (data (i32.const 48) "x-client")
(func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param $size i32) (result i32)
  (global.get $heap) (global.set $heap (i32.add (global.get $heap) (local.get $size))))
(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
  (drop (call $property (i32.const 16) (i32.const 14) (i32.const 0) (i32.const 4)))
  (drop (call $add (i32.const 2) (i32.const 48) (i32.const 8)
    (i32.load (i32.const 0)) (i32.load (i32.const 4))))
  (i32.const 0)))"""
"""Adds the client's address, whose port the sandbox cannot know."""


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    """Make `folder` the working directory, with `gate.wasm`, `client.wasm` and the filters of these names."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.chdir(folder)
    (folder / "gate.wasm").write_bytes(gate.module())
    (folder / "client.wasm").write_bytes(wat.compile_text(PORT))
    for name in names:
        (folder / f"{name}.wasm").write_bytes(filters.build(name).read_bytes())
