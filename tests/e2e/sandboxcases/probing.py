"""The form of the cases: scripts of the filter `probe`, one operation per line, as described in `tests/assets/filters/README.md`."""

from functools import cache

from autowasm.sandbox.message import Request, Response
from tests.parts import filters

CHUNKED = (("transfer-encoding", "chunked"),)
POST = (Request("POST", headers=(("content-length", "6"),), body=(b"abc", b"def")),)
CHUNKED_POST = (Request("POST", headers=CHUNKED, body=(b"abc", b"def")),)
POST_WITH_TRAILERS = (
    Request("POST", headers=CHUNKED, body=(b"abc", b"def"), trailers=(("x-t", "1"),)),
)
WITH_TRAILERS = Response(200, CHUNKED, (b"one", b"two"), trailers=(("x-rt", "2"),))


@cache
def probe() -> bytes:
    """The module of the filter `probe`."""
    return filters.build("probe").read_bytes()


def lines(text: str) -> str:
    """A script without the indentation that it has in the table."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


def each(event: str, operation: str, operands: str) -> str:
    """A script that does an operation for each of the operands, separated by spaces."""
    return "\n".join(f"{event} {operation} {operand}" for operand in operands.split())
