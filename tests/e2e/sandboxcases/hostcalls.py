"""Filters that call every host function with the same arguments, and log each result as one character."""

from collections.abc import Iterator, Sequence

from autowasm.envoyversion import envoy_version
from autowasm.wasm import abi
from tests.parts import wat
from tests.parts.comparison import Case

_ZERO = ord("0")
_ARGUMENTS = {
    "standard-output": (1, 0x2000),
    "other-descriptor": (3, 0x2000),
    "outside": (0xFFFFFFF0,),
}
"""The first argument, and all that follow (the last is repeated)."""
_NOT_CALLED = {
    "env.proxy_grpc_call",
    "env.proxy_grpc_stream",
    "env.proxy_continue_request",
    "env.proxy_continue_response",
}
"""Functions that would crash Envoy here."""


def cases(version: str) -> Iterator[Case]:
    """For each set of arguments, one filter of each ABI version, with all functions that this Envoy offers."""
    for abi_version in abi.ABIS:
        names = [
            name
            for name, function in sorted(abi.HOST_FUNCTIONS.items())
            if abi_version in function.abis
            and function.since <= envoy_version(version)
            and name not in _NOT_CALLED
        ]
        for kind, arguments in _ARGUMENTS.items():
            # Valid addresses only for WASI: `proxy_*` functions would read the memory there.
            chosen = [name for name in names if kind == "outside" or not name.startswith("env.")]
            text = _module(chosen, arguments, abi_version)
            yield Case(f"calls-{abi_version.replace('.', '-')}-{kind}", wat.compile_text(text))


def _module(names: Sequence[str], arguments: Sequence[int], abi_version: str) -> str:
    imports, calls = [], []
    for number, name in enumerate(names):
        space, _, field = name.partition(".")
        given, result = abi.HOST_FUNCTIONS[name].signature.split(" -> ")
        types = [] if given == "void" else given.split()
        returns = "" if result == "void" else result
        imports.append(
            f'(import "{space}" "{field}" (func $f{number} (param {" ".join(types)}) (result {returns})))'
        )
        values = [arguments[min(at, len(arguments) - 1)] for at in range(len(types))]
        operands = " ".join(
            f"({kind}.const {value})" for kind, value in zip(types, values, strict=True)
        )
        call = f"(call $f{number} {operands})"
        if returns:
            call = (
                f"(i32.store8 (i32.const {0x4000 + number}) (i32.add (i32.const {_ZERO}) {call}))"
            )
        calls.append(call)
    headers = "i32 i32" if abi_version == "0.1.0" else "i32 i32 i32"
    blank = "." * len(names)
    return f"""(module {" ".join(imports)}
    (import "env" "proxy_log" (func $say (param i32 i32 i32) (result i32)))
    (memory (export "memory") 1) (func (export "proxy_abi_version_{abi_version.replace(".", "_")}"))
    (data (i32.const 0x4000) "{blank}")
    (func (export "malloc") (param i32) (result i32) (i32.const 0x8000))
    (func (export "proxy_on_request_headers") (param {headers}) (result i32)
    {" ".join(calls)}
    (drop (call $say (i32.const 2) (i32.const 0x4000) (i32.const {len(names)})))
    (i32.const 0)))"""
