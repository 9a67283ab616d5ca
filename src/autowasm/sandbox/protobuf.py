"""The part of protobuf's wire format that host functions need to read Envoy's messages.

Source: protobuf.dev "Encoding". Invariant: bytes that Envoy's parser refuses as malformed are refused here, except for groups, and strings that are
not UTF-8.
"""


def fields(message: bytes) -> list[tuple[int, int | bytes]] | None:
    """The fields of a message by number: a varint as a number, any other field as bytes. None if it is malformed."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if tag < 0 or number == 0:
            return None
        size = _FIXED.get(kind)
        if kind == _VARINT:
            value, at = _varint(message, at)
            if value < 0:
                return None
            found.append((number, value))
            continue
        if kind == _LENGTH:
            size, at = _varint(message, at)
        if size is None or size < 0 or at + size > len(message):
            return None
        found.append((number, message[at : at + size]))
        at += size
    return found


_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at` (-1 if there is none), and the position of the next field."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            return -1, at
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return -1, at
