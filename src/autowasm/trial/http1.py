"""HTTP/1.1 messages on a raw connection: read and written unchanged, headers in order.

For one exchange with an Envoy on this machine. Invariant: a message is bounded (`MAX_HEAD`, `MAX_BODY`).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Pairs = Sequence[tuple[str, str]]


MAX_HEAD: Final = 256 * 1024
MAX_BODY: Final = 64 * 1024 * 1024
_BODILESS: Final = frozenset({"204", "304"})


@dataclass(frozen=True, slots=True)
class Wire:
    """A message: the words of the first line, headers with lower-case names, body, trailers. `is_complete`: all of it arrived."""

    first: tuple[str, ...]
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    trailers: tuple[tuple[str, str], ...] = ()
    is_complete: bool = True


async def read(
    reader: asyncio.StreamReader, *, is_request: bool, is_head: bool = False
) -> Wire | None:
    """The next message; None if there is none. `is_head`: the response to a HEAD request. Raises ValueError if it is too large."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except asyncio.LimitOverrunError as error:
        raise ValueError("the headers are too large") from error
    line, *rest = head[:-4].split("\r\n")
    words = tuple(line.split(" ", 2))
    headers = tuple(_pair(each) for each in rest)
    if is_head or (not is_request and words[1] in _BODILESS):
        return Wire(words, headers, b"")
    found = dict(headers)
    if "chunked" in found.get("transfer-encoding", ""):
        return await _chunked(reader, words, headers)
    length = found.get("content-length", "")
    if not length and is_request:
        return Wire(words, headers, b"")
    return await _sized(reader, words, headers, int(length) if length.isdecimal() else None)


async def _sized(
    reader: asyncio.StreamReader,
    words: tuple[str, ...],
    headers: tuple[tuple[str, str], ...],
    length: int | None,
) -> Wire:
    """Reads as many bytes as the length announces, or to the end of the connection."""
    body = bytearray()
    while length is None or len(body) < length:
        piece = await _some(reader, 65536 if length is None else length - len(body))
        if not piece:
            return Wire(words, headers, bytes(body), is_complete=length is None)
        body += piece
        _check(len(body))
    return Wire(words, headers, bytes(body))


async def _chunked(
    reader: asyncio.StreamReader, words: tuple[str, ...], headers: tuple[tuple[str, str], ...]
) -> Wire:
    body = bytearray()
    trailers = []
    try:
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            _check(len(body) + size)
            body += (await reader.readexactly(size + 2))[:-2]
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            trailers.append(_pair(line[:-2].decode("utf-8", "surrogateescape")))
    except (asyncio.IncompleteReadError, ConnectionError):
        return Wire(words, headers, bytes(body), is_complete=False)
    return Wire(words, headers, bytes(body), tuple(trailers))


async def _some(reader: asyncio.StreamReader, most: int) -> bytes:
    try:
        return await reader.read(min(most, 65536))
    except ConnectionError:
        return b""


def _check(size: int) -> None:
    if size > MAX_BODY:
        raise ValueError(f"the body is larger than {MAX_BODY} bytes")


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def encode(first: str, headers: Pairs, pieces: Sequence[bytes], trailers: Pairs = ()) -> bytes:
    """The bytes of a message; chunked if its headers announce that."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"{first}\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
    if not any(name == "transfer-encoding" for name, _ in headers):
        return head + b"".join(pieces)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
    end = "".join(f"{name}: {value}\r\n" for name, value in trailers)
    return head + chunks + f"0\r\n{end}\r\n".encode("utf-8", "surrogateescape")
