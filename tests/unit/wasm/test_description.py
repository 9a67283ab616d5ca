"""The description of a module that may be refused."""

from pathlib import Path

import pytest

from autowasm.errors import StorageError
from autowasm.limits import Limits
from autowasm.wasm.module import Description, describe_module
from tests.parts import wat


def describe(folder: Path, data: bytes) -> Description:
    file = folder / "module.wasm"
    file.write_bytes(data)
    return describe_module(file, limits=Limits())


def test_a_filter_is_described(tmp_path: Path) -> None:
    described = describe(tmp_path, wat.header_filter("world"))
    assert described.abi == ("0.2.1",)
    assert [str(each) for each in described.imports] == ["env.proxy_add_header_map_value"]
    assert "proxy_on_memory_allocate" in {each.name for each in described.exports}


def test_a_refused_module_is_described_too(tmp_path: Path) -> None:
    text = '(module (import "js" "f" (func)) (func (export "proxy_abi_version_9_9_9")))'
    described = describe(tmp_path, wat.compile_text(text))
    assert described.abi == ("9.9.9",)
    assert [str(each) for each in described.imports] == ["js.f"]


def test_description_of_an_invalid_module_is_empty(tmp_path: Path) -> None:
    module = wat.header_filter("world")
    for data in (b"", b"rubbish", b"\0asm\x0d\0\1\0", module[:-10], module + b"\x02\x05abc"):
        assert describe(tmp_path, data) == Description()


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot read the module at {tmp_path}: Is a directory"):
        describe_module(tmp_path, limits=Limits())
