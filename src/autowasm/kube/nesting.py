"""Objects nested deeper than a decoder goes: cut, so that one of them does not make a list unreadable.

The API server keeps objects nested up to 10 000 levels deep where a schema lets fields through unseen (seen with
`pluginConfig` on 1.36); Python's decoders end at some 1000 with a RecursionError, which would take the watch of everybody's
objects with it. Invariant: what is cut is deeper than `DEEPEST`, far below what any reader of ours accepts, so such an
object is refused for its depth and nothing else changes.

Source: k8s.io/apimachinery `pkg/util/json` (maxDepth 10 000).
"""

import asyncio
import re
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

DEEPEST: Final = 200
TURN: Final = 8 * 1024
"""Bytes looked at in one turn of the loop, which takes some 3 ms if all of them are brackets."""
_BRACKET: Final = re.compile(rb'(?:[^"\[\]{}]++|"[^"]*+"){0,2000}+([\[\]{}]?)')
"""On to the next bracket that is not within a string, or a part of the way: what is passed at once holds the loop."""


async def decode_any_depth(decode: Callable[[bytes | bytearray], T], text: bytes | bytearray) -> T:
    """Decode `text`, cut where it is nested too deeply. Raises as `decode` does, but no RecursionError."""
    try:
        return decode(text)
    except RecursionError:
        return decode(await without_depths(text))


async def without_depths(text: bytes | bytearray) -> bytes:
    """JSON `text` with `null` for each object and array that begins more than `DEEPEST` levels deep.

    What is not JSON stays that, or is empty. Takes 0.2 µs for each bracket, which is why it is for texts that could not be
    decoded, and gives way to others after each `TURN`.
    """
    kept: list[bytes] = []
    depth, start, turn_ends = 0, 0, TURN
    # Of the same length, and without quotes that do not end a string.
    shape = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    for match in _BRACKET.finditer(shape):
        if match.end() >= turn_ends:
            turn_ends = match.end() + TURN
            await asyncio.sleep(0)
        bracket = match[1]
        if not bracket:
            continue
        if bracket in b"[{":
            depth += 1
            if depth == DEEPEST + 1:
                kept.append(bytes(text[start : match.start(1)]))
                kept.append(b"null")
        else:
            if depth == DEEPEST + 1:
                start = match.end()
            depth -= 1
    if depth > DEEPEST:
        return b""  # it never comes back: not JSON, and a decoder says so
    kept.append(bytes(text[start:]))
    return b"".join(kept)
