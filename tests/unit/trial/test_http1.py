"""Messages of HTTP/1.1 as they are on the wire."""

import asyncio

import pytest

from autowasm.trial import http1
from autowasm.trial.http1 import Wire


async def read(data: bytes, *, is_request: bool = False, is_head: bool = False) -> Wire | None:
    reader = asyncio.StreamReader(limit=1000)
    reader.feed_data(data)
    reader.feed_eof()
    return await http1.read(reader, is_request=is_request, is_head=is_head)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("data", "body", "is_complete"),
    [
        (HEAD + b"content-length: 2\r\n\r\nabc", b"ab", True),
        (HEAD + b"content-length: 5\r\n\r\nabc", b"abc", False),
        (HEAD + b"\r\nabc", b"abc", True),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n", b"abc", True),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n", b"ab", False),
        (b"HTTP/1.1 204 No\r\ncontent-length: 9\r\n\r\n", b"", True),
    ],
)  # fmt: skip
async def test_body_ends_as_its_headers_say(data: bytes, body: bytes, is_complete: bool) -> None:
    found = await read(data)
    assert found is not None
    assert (found.body, found.is_complete) == (body, is_complete)


async def test_message_has_its_first_line_headers_in_order_and_trailers() -> None:
    data = http1.encode(
        "POST /x HTTP/1.1",
        [("host", "a"), ("transfer-encoding", "chunked"), ("x", "1"), ("x", "2")],
        [b"ab", b"", b"c"],
        [("end", "yes")],
    )
    assert await read(data, is_request=True) == Wire(
        ("POST", "/x", "HTTP/1.1"),
        (("host", "a"), ("transfer-encoding", "chunked"), ("x", "1"), ("x", "2")),
        b"abc",
        (("end", "yes"),),
    )


async def test_response_to_head_has_no_body() -> None:
    found = await read(HEAD + b"content-length: 5\r\n\r\n", is_head=True)
    assert found is not None
    assert (found.body, found.is_complete) == (b"", True)


async def test_closed_connection_has_no_message() -> None:
    assert await read(b"") is None
    assert await read(b"HTTP/1.1 200") is None


async def test_message_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "MAX_BODY", 10)
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        await read(HEAD + b"content-length: 11\r\n\r\n" + b"x" * 11)
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        await read(HEAD + b"transfer-encoding: chunked\r\n\r\nb\r\n" + b"x" * 11)
    with pytest.raises(ValueError, match="headers are too large"):
        await read(HEAD + b"x: " + b"y" * 2000 + b"\r\n\r\n")
