"""The fast path takes only requests that aiohttp would take, too, and in which aiohttp sees nothing that changes the response."""

import asyncio
from typing import Any, Final
from unittest import mock

import pytest
from aiohttp import http_parser
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from hypothesis import example, given
from hypothesis import strategies as st

from autowasm.performance.fastpath import plain_request

DIGEST: Final = "ab" * 32
PARSERS: Final = {http_parser.HttpRequestParser, http_parser.HttpRequestParserPy}
"""The compiled one and its fallback; aiohttp uses the first that it has."""
NAMES: Final = (
    *("host", "Host", "user-agent", "User-Agent", "accept", "accept-encoding", "cache-control"),
    *("pragma", "x-request-id", "x-forwarded-for", "x-envoy-internal", "b3", "x-b3-traceid"),
    *("content-length", "content-type", "connection", "range", "etag", "server", "upgrade"),
    *("transfer-encoding", "max-forwards", "expect", "content-encoding", "sec-websocket-key1"),
)
VALUES: Final = st.one_of(
    st.sampled_from(["", " ", "\t", "h", " h", "\th", " h ", "0", "close", "chunked", "a\tb"]),
    st.text(st.characters(max_codepoint=255), max_size=4),
)
FIELDS: Final = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([":", " :"]), VALUES), max_size=6
)
TARGETS: Final = st.sampled_from(["", "?", "?r=1", "?a?b", "?%", "#a", "/"])


def parsed(parser: Any, data: bytes) -> Any:
    loop = mock.create_autospec(asyncio.AbstractEventLoop, instance=True)
    messages, upgraded, rest = parser(BaseProtocol(loop), loop, 2**16).feed_data(data)
    assert (len(messages), upgraded, rest) == (1, False, b"")
    return messages[0]


def assert_plain_for_aiohttp(data: bytes) -> None:
    for parser in PARSERS:
        try:
            message, payload = parsed(parser, data)
        except HttpProcessingError as error:
            pytest.fail(f"{parser} refuses {data!r}: {error}")
        assert message.method == "GET"
        assert message.url.raw_path == f"/wasm/{DIGEST}"
        assert message.version == (1, 1)
        assert (message.should_close, message.upgrade, message.chunked) == (False, False, False)
        assert message.compression is None
        assert payload is EMPTY_PAYLOAD
        assert not {"range", "if-match", "if-none-match", "if-range"} & {
            name.lower() for name in message.headers
        }


@example("", [("host", ":", "h"), ("user-agent", ":", "a"), ("User-Agent", ":", "a")])
@example("", [("host", ":", ""), ("host", ":", "h")])
@example("", [("host", ":", "\tx"), ("Host", ":", "h")])
@example("", [("host", ":", "h"), *[("b3", ":", "")] * 128])
@given(TARGETS, FIELDS)
def test_request_that_is_taken_is_plain_for_aiohttp(
    target: str, fields: list[tuple[str, str, str]]
) -> None:
    lines = [f"GET /wasm/{DIGEST}{target} HTTP/1.1", *map("".join, fields), "", ""]
    data = "\r\n".join(lines).encode("latin-1")
    if plain_request(data) is not None:
        assert_plain_for_aiohttp(data)


@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES[:13]), st.sampled_from(["", " ", "\t", "1", " 1\t2"])),
        max_size=8,
    )
)
def test_duplicates_of_fields_that_are_taken_are_plain_for_aiohttp(
    fields: list[tuple[str, str]],
) -> None:
    lines = [f"GET /wasm/{DIGEST} HTTP/1.1", "host: h", *map(":".join, fields), "", ""]
    data = "\r\n".join(lines).encode()
    if plain_request(data) is not None:
        assert_plain_for_aiohttp(data)
