"""Header maps as the ABI has them in the module's memory: count, sizes of all names and values, then each with a NUL behind it.

Invariant: `unpack(pack(pairs)) == pairs` for every map that Envoy accepts, and `unpack` of any other bytes is empty, as in
Envoy, which reports no error.

Source: proxy-wasm-cpp-host src/pairs_util.cc `marshalPairs` and `toPairs`, include/proxy-wasm/limits.h.
"""

import struct
from collections.abc import Iterable
from typing import Final

Pairs = list[tuple[bytes, bytes]]

MAX_BYTES: Final = 1024 * 1024
MAX_COUNT: Final = 1024
"""More of either, from the module, is read as no pairs at all. What the host writes has no limit."""


def pack(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a map."""
    flat = [text for pair in pairs for text in pair]
    sizes = [len(text) for text in flat]
    head = struct.pack(f"<I{len(flat)}I", len(flat) // 2, *sizes)
    return head + b"".join(text + b"\0" for text in flat)


def unpack(data: bytes) -> Pairs:
    """The map in `data`; empty if `data` is malformed or larger than Envoy reads."""
    if not 4 <= len(data) <= MAX_BYTES:
        return []
    (count,) = struct.unpack_from("<I", data)
    at = 4 + 8 * count
    if count > MAX_COUNT or at > len(data):
        return []
    texts = []
    for size in struct.unpack_from(f"<{2 * count}I", data, 4):
        end = at + size
        if end + 1 > len(data) or data[end] != 0:
            return []
        texts.append(data[at:end])
        at = end + 1
    if at != len(data):
        return []
    return list(zip(texts[::2], texts[1::2], strict=True))
