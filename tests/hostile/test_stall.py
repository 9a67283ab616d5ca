"""Hostile input of any size is parsed without holding the event loop for 20 ms of processor time."""

import ctypes
import functools
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wasmtime import _bindings, _ffi

from autowasm.api import validation
from autowasm.api.envoyfilter import render
from autowasm.errors import AutoWasmError
from autowasm.limits import Limits, LoopLimits
from autowasm.performance import eventloop
from autowasm.registry.credentials import from_docker_config
from autowasm.registry.manifest import parse_manifest
from autowasm.settings import EnvoyFetch
from autowasm.wasm.archive import extract_module
from autowasm.wasm.module import inspect_module
from tests.fakes.autowasms import document, record
from tests.hostile import inputs
from tests.hostile.looptime import longest_hold, longest_iteration

MOST = 0.020
LIMITS = Limits()
MIB = 1024 * 1024


@pytest.fixture(autouse=True, scope="module")
def as_in_the_process() -> Iterator[None]:
    """The settings of `runtime.run` for the whole process. What it freezes stays so: the collection of tests has frozen most of it."""
    import gc  # noqa: PLC0415

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(LoopLimits().switch)
    eventloop.tune_gc()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)


def outcome(work: Callable[[], object]) -> str:
    """The message of the error; empty if there is none."""
    try:
        work()
    except AutoWasmError as error:
        return str(error)
    return ""


def exports(count: int, *, length: int) -> bytes:
    """A module with this many exports, with names of this length."""
    names = b"".join(
        inputs.leb(length) + f"{n:0{length}d}".encode() + b"\0\0" for n in range(count)
    )
    return (
        inputs.MODULE_START
        + inputs.section(1, b"\x01\x60\0\0")
        + inputs.section(3, b"\x01\x00")
        + inputs.section(7, inputs.leb(count) + names)
        + inputs.section(10, b"\x01\x02\0\x0b")
    )


MODULES: dict[str, Callable[[], bytes]] = {
    "50 000 functions": lambda: inputs.with_functions(50_000),
    "500 000 functions": lambda: inputs.with_functions(500_000),
    "900 000 names": lambda: inputs.with_names(900_000, size=30 * MIB),
    "100 000 exports": lambda: exports(100_000, length=60),
    "30 MB of exports": lambda: exports(100_000, length=300),
    "9 000 sections": lambda: inputs.hello() + inputs.section(0, b"\x01a") * 9_000,
    "2^32 functions": lambda: inputs.with_declared_functions(2**32 - 1),
}
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "gzip": inputs.gzip_bomb,
    "zstd": inputs.zstd_bomb,
    "nested": inputs.nested_bomb,
    "million entries": inputs.million_entries,
    "9 999 entries": lambda: inputs.gzip_of({f"{n}.wasm": b"x" for n in range(9_999)}),
}


def annotated(count: int) -> bytes:
    whole = json.loads(inputs.manifest([]))
    whole["annotations"] = {f"k{number}": "v" for number in range(count)}
    return json.dumps(whole).encode()


MANIFESTS: dict[str, Callable[[], bytes]] = {
    "10 000 layers": lambda: inputs.many_layers(10_000),
    "250 000 annotations": lambda: annotated(250_000),
    "24 000 annotations": lambda: annotated(24_000),
    "100 MB": lambda: b"{" + b" " * (100 * MIB),
    "nested": lambda: b'{"config":' * 400_000,
    "a million layers of nothing": lambda: b'{"layers":[' + b"{}," * 1_300_000 + b"{}]}",
    "brackets": lambda: b'{"other":[' + b"[]," * 1_300_000 + b"0]}",
}


def many_keys(count: int) -> dict[str, Any]:
    return {f"k{number}": number for number in range(count)}


SPECS: dict[str, Callable[[], dict[str, Any]]] = {
    "90 000 values": lambda: document(pluginConfig=many_keys(90_000)),
    "9 900 values": lambda: document(pluginConfig=many_keys(9_900)),
    "a long string": lambda: document(pluginConfig="x" * 1_000_000),
    "a long string for 100 ports": lambda: document(
        pluginConfig="x" * 1_000_000, applyPorts=list(range(1, 101))
    ),
    "a long image": lambda: document(image="a/" * 700_000 + "b"),
    "a long key": lambda: document(pluginConfig={"k" * MIB: list(range(9_000))}),
    "many labels": lambda: document(
        spec={"selector": {"matchLabels": {f"k{n}": "v" for n in range(60_000)}}}
    ),
}


async def test_a_long_turn_is_seen() -> None:
    """The measurement works: code on the event loop counts as an iteration."""
    assert not tracemalloc.is_tracing()

    async def hold() -> None:
        sum(range(8_000_000))

    assert await longest_iteration(hold, scaled=False) > MOST


def test_one_long_call_into_c_is_measured_as_a_hold_and_python_code_is_not() -> None:
    """The measurement works: one long call into C holds the lock, although the loop's own thread is idle."""

    def counted() -> None:
        total = 0
        for number in range(3_000_000):
            total += number

    assert longest_hold(lambda: sum(range(8_000_000)), scaled=False) > MOST
    assert longest_hold(counted, below=MOST) < MOST


@pytest.mark.parametrize("kind", MODULES)
def test_reading_a_module_leaves_the_loop_free(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "module"
    file.write_bytes(MODULES[kind]())
    read = functools.partial(inspect_module, file, limits=LIMITS, allow_imports=frozenset())
    released = [(_ffi, "wasmtime_module_validate")]
    assert longest_hold(lambda: outcome(read), below=MOST, released=released) < MOST


def test_wasmtime_works_without_the_interpreter_lock() -> None:
    """`ctypes.CDLL` releases the lock for each call, `ctypes.PyDLL` does not; so validation is no hold."""
    assert isinstance(_bindings.dll, ctypes.CDLL)
    assert not isinstance(_bindings.dll, ctypes.PyDLL)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_unpacking_leaves_the_loop_free(kind: str, tmp_path: Path) -> None:
    file, out = tmp_path / "packed", tmp_path / "out"
    file.write_bytes(ARCHIVES[kind]())
    unpack = functools.partial(extract_module, file, out, packing="detect", limits=LIMITS)
    assert longest_hold(lambda: outcome(unpack), below=MOST) < MOST


@pytest.mark.parametrize("kind", MANIFESTS)
def test_reading_a_manifest_leaves_the_loop_free(kind: str) -> None:
    read = functools.partial(parse_manifest, MANIFESTS[kind](), None, limits=LIMITS)
    assert longest_hold(lambda: outcome(read), below=MOST) < MOST


@pytest.mark.parametrize("entries", [3_000, 20_000])
async def test_a_large_docker_config_is_read_or_refused_at_once(entries: int) -> None:
    config = inputs.docker_config(entries)

    async def read() -> object:
        return outcome(lambda: from_docker_config(config, host="r.example", repository="a/b"))

    assert await longest_iteration(read, below=MOST) < MOST


@pytest.mark.parametrize("kind", SPECS)
async def test_an_autowasm_of_the_largest_size_is_read_or_refused_at_once(kind: str) -> None:
    given = SPECS[kind]()

    async def read() -> object:
        return outcome(lambda: validation.parse(given))

    assert await longest_iteration(read, below=MOST) < MOST


@pytest.mark.parametrize("kind", ["9 900 values", "a long string"])
async def test_accepted_spec_is_rendered_without_stalling_the_loop(kind: str) -> None:
    autowasm = validation.parse(SPECS[kind]())

    async def made() -> object:
        return render(autowasm, record(), EnvoyFetch())

    assert await longest_iteration(made, below=MOST) < MOST
