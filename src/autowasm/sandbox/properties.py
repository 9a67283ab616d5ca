"""Properties: values under a path, and their bytes as a module gets them.

Values are Python's: str, bytes, bool, int (64 bits, signed), Uint, float, mappings and sequences. Invariant: a number has eight bytes, in
little-endian order like the machines that Envoy runs on, and a boolean one.

Source: envoy source/extensions/common/wasm/context.cc `getProperty`, `serializeValue`.
"""

import struct
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Final, TypeAlias

from autowasm.sandbox.headers import pack
from autowasm.sandbox.protocol import Result


class Uint(int):
    """An unsigned number of 64 bits, such as `connection_id`."""


Value: TypeAlias = (
    str | bytes | bool | int | float | Mapping[str, "Value"] | Sequence["Value"] | None
)


class Attributes(dict[str, Value]):
    """A map whose entries Envoy finds by name but cannot list, such as `request`; it is not a value itself."""


class Proto(dict[str, Value]):
    """A protobuf message: its fields, and its bytes as a value."""

    serialized: bytes = b""


_U64: Final = 2**64 - 1


def split(path: bytes) -> list[bytes]:
    """The parts of a path, which are separated by NUL. A NUL at the end adds none."""
    parts = path.split(b"\0")
    return parts[:-1] if not parts[-1] else parts


def find(value: Value, parts: Sequence[bytes]) -> Value | Result:
    """The value at a path below `value`; NOT_FOUND if there is none."""
    for part in parts:
        name = part.decode(errors="surrogateescape")
        if isinstance(value, Mapping):
            if name not in value:
                return Result.NOT_FOUND
            value = value[name]
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            if not name.isdecimal() or len(name) > 9 or int(name) >= len(value):
                return Result.NOT_FOUND
            value = value[int(name)]
        else:
            return Result.NOT_FOUND
    return value


def encode(value: Value) -> bytes | None:
    """The bytes of a value; None if Envoy cannot serialize it."""
    match value:
        case str():
            return value.encode(errors="surrogateescape")
        case bytes():
            return value
        case bool():
            return b"\1" if value else b"\0"
        case int():
            return struct.pack("<Q", value & _U64)
        case float():
            return struct.pack("<d", value)
    return _encode_composite(value)


def _encode_composite(value: Mapping[str, Value] | Sequence[Value] | None) -> bytes | None:
    match value:
        case Proto():
            return value.serialized
        case Attributes() | None:
            return None
        case Mapping():
            return _packed(
                [(each.encode(errors="surrogateescape"), encode(value[each])) for each in value]
            )
    return _packed([(encode(each), b"") for each in value])


def _packed(pairs: Sequence[tuple[bytes | None, bytes | None]]) -> bytes | None:
    known = [(name, value) for name, value in pairs if name is not None and value is not None]
    return pack(known) if len(known) == len(pairs) else None


def merged(base: dict[str, Value], over: Mapping[str, Value]) -> dict[str, Value]:
    """`base` overridden by the values of `over`; mappings are merged, all other values are replaced."""
    result = copy(base)
    for name, value in over.items():
        present = result.get(name)
        if isinstance(value, Mapping) and isinstance(present, dict):
            result[name] = merged(present, value)
        else:
            result[name] = value
    return result
