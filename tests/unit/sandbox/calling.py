"""Modules that call host functions in a callback and keep the results, and how the results are read.

`module(calls={"proxy_on_configure": [...]})` is a filter whose callback makes the calls one after another. An argument is a
number, bytes (address and size), or an `Out`, the address of a cell that the host writes to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autowasm.sandbox.host import Host
from autowasm.wasm import abi
from tests.parts import wat

_RESULTS, _CELLS, _DATA, _HEAP = 0x1000, 0x2000, 0x4000, 0x20000
_CELL_BYTES = 16


@dataclass(frozen=True)
class Out:
    """A cell of 16 bytes in the module's memory."""

    number: int
    offset: int = 0

    @property
    def address(self) -> int:
        return _CELLS + _CELL_BYTES * self.number + self.offset


Argument = int | bytes | Out


@dataclass(frozen=True)
class Call:
    """A call of a host function (`proxy_log`, or `wasi_snapshot_preview1.fd_write`)."""

    function: str
    arguments: tuple[Argument, ...]

    @property
    def name(self) -> str:
        return self.function if "." in self.function else f"env.{self.function}"


def call(function: str, *arguments: Argument) -> Call:
    """A call."""
    return Call(function, arguments)


def module(
    calls: Mapping[str, Sequence[Call]],
    *,
    returns: Mapping[str, int] | None = None,
    version: str = "0.2.1",
    extra: str = "",
    pages: int = 4,
) -> bytes:
    """A filter that makes the calls in its callbacks. `returns` are the results of callbacks, else 1 for start and 0.

    Memory is handed out from 0x20000 on and never freed; the host may allocate 64 KiB.
    """
    imported = dict.fromkeys(each.name for made in calls.values() for each in made)
    texts = [_import(name) for name in imported]
    data: dict[bytes, int] = {}
    bodies = []
    number = 0
    for callback, made in calls.items():
        lines = []
        for each in made:
            lines.append(_call_text(each, number, data))
            number += 1
        value = (returns or {}).get(callback, 1 if callback in _START else 0)
        bodies.append(_callback_text(callback, version, "\n".join(lines), value))
    for text, address in data.items():
        escaped = "".join(f"\\{byte:02x}" for byte in text)
        bodies.append(f'(data (i32.const {address}) "{escaped}")')
    texts.append(_FRAME.format(abi=version.replace(".", "_"), pages=pages, heap=_HEAP))
    return wat.compile_text("(module " + "\n".join([*texts, *bodies, extra]) + ")")


_START = {"proxy_on_vm_start", "proxy_on_configure"}
_FRAME = """
(memory (export "memory") {pages}) (func (export "proxy_abi_version_{abi}"))
(global $heap (mut i32) (i32.const {heap}))
(func (export "malloc") (param $size i32) (result i32) (local $at i32)
  (local.set $at (global.get $heap))
  (global.set $heap (i32.and (i32.add (i32.add (global.get $heap) (local.get $size)) (i32.const 7)) (i32.const -8)))
  (local.get $at))
"""


def _import(name: str) -> str:
    space, _, field = name.partition(".")
    known = abi.HOST_FUNCTIONS.get(name)
    signature = known.signature if known else "void -> i32"
    parameters, result = (_type(part) for part in signature.split(" -> "))
    return f'(import "{space}" "{field}" (func ${name} (param {parameters}) (result {result})))'


def _type(text: str) -> str:
    return "" if text == "void" else text


def _call_text(made: Call, number: int, data: dict[bytes, int]) -> str:
    known = abi.HOST_FUNCTIONS.get(made.name)
    signature = known.signature if known else "void -> i32"
    types = [each for each in signature.partition(" -> ")[0].split() if each != "void"]
    numbers: list[int] = []
    for argument in made.arguments:
        if isinstance(argument, bytes):
            numbers += [_placed(argument, data), len(argument)]
        else:
            numbers.append(argument.address if isinstance(argument, Out) else argument)
    assert len(numbers) == len(types), (made.name, numbers, types)
    operands = " ".join(
        f"({kind}.const {value})" for kind, value in zip(types, numbers, strict=True)
    )
    text = f"(call ${made.name} {operands})"
    if signature.endswith("void"):
        return text
    return f"(i32.store (i32.const {_RESULTS + 4 * number}) {text})"


def _placed(text: bytes, data: dict[bytes, int]) -> int:
    if text not in data:
        data[text] = _DATA + sum((len(each) | 15) + 1 for each in data)
    return data[text]


def _callback_text(callback: str, version: str, body: str, value: int) -> str:
    signature = abi.called_functions(version, frozenset({"malloc"}))[callback]
    parameters, result = (_type(part) for part in signature.split(" -> "))
    last = f"(i32.const {value})" if result else ""
    return f'(func (export "{callback}") (param {parameters}) (result {result}) {body} {last})'


def results(host: Host, count: int) -> list[int]:
    """What the first calls returned, in the order of the module's text."""
    data = host.read(_RESULTS, 4 * count)
    assert data is not None
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def number(host: Host, cell: Out, size: int = 4) -> int:
    """The number in a cell."""
    data = host.read(cell.address, size)
    assert data is not None
    return int.from_bytes(data, "little")


def given(host: Host, address: Out, size: Out) -> bytes:
    """The bytes that the host handed to the module: their address and size are in the cells."""
    data = host.read(number(host, address), number(host, size))
    assert data is not None
    return data
