"""Modules that call host functions in any order with any arguments, generated from bytes: equal bytes give equal modules.

They are valid and export every callback, so each byte affects the host: the function, the callback that calls it, and the
arguments (small numbers, addresses near the end of memory, or any 32 bits); and the content of memory, with texts that the host
understands.
"""

from collections.abc import Iterator

from wasmtime import wat2wasm

from autowasm.envoyversion import envoy_version
from autowasm.sandbox.clusteranswers import GrpcAnswer, HttpAnswer
from autowasm.sandbox.engine import Engine, compile_module
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.tcp import Sent, Side
from autowasm.sandbox.vm import Started
from autowasm.trial.trial import Subject, Trial
from autowasm.wasm import abi

PAGE = 65536
_INTERESTING = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 200, 255, 503, PAGE - 4, PAGE - 1, PAGE, 2**31 - 1, 2**31, 2**32 - 1)  # fmt: skip
_TEXTS = 0x1000
_HEAP = 0x8000
"""The allocator starts here again for each call: earlier data of the host is overwritten."""
_WORDS = (
    b":path\0:status\0:method\0x-a\0content-length\0host\0auth\0grpc\0source\0address\0request\0"
    b"plugin_root_id\0filter_state\0metadata\0a.b\0/etc/passwd\0\n\x04auth\xff\xfe\0compress\0"
)
_PAIRS = (
    b"\x03\0\0\0\x05\0\0\0\x01\0\0\0\x07\0\0\0\x04\0\0\0\x0a\0\0\0\x01\0\0\0"
    b":path\0/\0:method\0POST\0:authority\0a\0"
)
_MOST_CALLS = 12
"""Maximum number of calls in one callback."""
NEWEST = envoy_version("1.40")


class _Bytes:
    """Reads the bytes one by one; zeros after the last."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int = 1) -> int:
        piece = self._data[self._at : self._at + count]
        self._at += count
        return int.from_bytes(piece, "little")

    def number(self) -> int:
        kind = self.take()
        if kind < 160:
            return _INTERESTING[kind % len(_INTERESTING)]
        if kind < 200:
            return _TEXTS + self.take() % (len(_WORDS) + len(_PAIRS))
        if kind < 220:
            return _TEXTS + len(_WORDS)  # the pairs
        return self.take(4)


def module_text(data: bytes) -> str:
    """The module in WebAssembly text."""
    source = _Bytes(data)
    version = abi.ABIS[source.take() % len(abi.ABIS)]
    functions = [
        name for name, function in sorted(abi.HOST_FUNCTIONS.items()) if version in function.abis
    ]
    callbacks = dict(sorted(abi.called_functions(version, frozenset()).items()))
    callbacks.pop("malloc")
    callbacks.pop("_start")
    bodies = [_callback(name, kind, functions, source) for name, kind in callbacks.items()]
    code = "\n".join(bodies)
    imports = [
        _import(number, name)
        for number, name in enumerate(functions)
        if f"(call $f{number} " in code
    ]
    texts = "".join(f"\\{byte:02x}" for byte in _WORDS + _PAIRS)
    return "\n".join(
        [
            f"(module {' '.join(imports)}",
            f'(memory (export "memory") 1 4) (data (i32.const {_TEXTS}) "{texts}")',
            f'(func (export "proxy_abi_version_{version.replace(".", "_")}"))',
            f'(func (export "malloc") (param i32) (result i32) (i32.const {_HEAP}))',
            code,
            ")",
        ]
    )


def _import(number: int, name: str) -> str:
    space, _, field = name.partition(".")
    return (
        f'(import "{space}" "{field}" (func $f{number}{_type(abi.HOST_FUNCTIONS[name].signature)}))'
    )


def _type(signature: str) -> str:
    given, result = signature.split(" -> ")
    params = "" if given == "void" else f" (param {given})"
    return params + ("" if result == "void" else f" (result {result})")


def _callback(name: str, kind: str, functions: list[str], source: _Bytes) -> str:
    calls = "".join(_calls(functions, source))
    result = ""
    if kind.endswith("i32"):
        # Starts and configures in most cases: a module that refuses at once makes no more calls.
        value = source.take() % 8
        is_start = name in {
            "proxy_on_vm_start",
            "proxy_on_configure",
            "proxy_validate_configuration",
        }
        result = f"(i32.const {(value != 7) if is_start else value % 4:d})"
    return f'(func (export "{name}"){_type(kind)} {calls} {result})'


def _calls(functions: list[str], source: _Bytes) -> Iterator[str]:
    for _ in range(source.take() % _MOST_CALLS):
        number = source.take() % len(functions)
        given, result = abi.HOST_FUNCTIONS[functions[number]].signature.split(" -> ")
        kinds = [] if given == "void" else given.split()
        arguments = " ".join(f"({kind}.const {source.number()})" for kind in kinds)
        call = f"(call $f{number} {arguments})"
        yield call if result == "void" else f"(drop {call})"


def run(data: bytes, engine: Engine) -> Trial:
    """Start the module, and let a request and a connection pass. An exception is an error of the sandbox."""
    compiled = compile_module(engine, bytes(wat2wasm(module_text(data))))
    plugin = Plugin(configuration=b"configuration", environment={"A": "b"})
    clusters = {
        "auth": [HttpAnswer(200, (("x-a", "b"),), b"body"), HttpAnswer(503)],
        "grpc": GrpcAnswer(messages=(b"one",)),
    }
    trial = Trial(Subject(compiled, plugin, envoy=NEWEST, clusters=clusters))
    if isinstance(trial.started, Started):
        trial.send(
            Request(
                "POST",
                "/",
                headers=(("x-a", "1"),),
                body=(b"one", b"two"),
                trailers=(("x-t", "1"),),
            ),
            Response(200, (("x-b", "2"),), (b"three", b"four")),
        )
        trial.converse([Sent(Side.CLIENT, b"hello"), Sent(Side.SERVICE, b"hello back")])
    return trial
