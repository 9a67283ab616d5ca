"""Which requests are taken without aiohttp."""

import pytest

from autowasm.server.plain import plain_request

DIGEST = "ab" * 32
ENVOY = (
    f"GET /wasm/{DIGEST} HTTP/1.1\r\n"
    "host: wasmer.wasmer-system:8081\r\n"
    "x-envoy-internal: true\r\n"
    "x-forwarded-for: 10.0.0.7\r\n"
    "x-envoy-expected-rq-timeout-ms: 30000\r\n"
    "\r\n"
)


def test_takes_what_envoy_sends() -> None:
    assert plain_request(ENVOY.encode()) == DIGEST


def test_takes_the_query_that_makes_envoy_ask_once_more() -> None:
    assert plain_request(ENVOY.replace(DIGEST, DIGEST + "?r=7&anything").encode()) == DIGEST


def test_takes_what_curl_sends() -> None:
    curl = f"GET /wasm/{DIGEST} HTTP/1.1\r\nHost: [::1]:8081\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n"
    assert plain_request(curl.encode()) == DIGEST


@pytest.mark.parametrize(
    "field",
    [
        "Range: bytes=0-1",
        "If-None-Match: *",
        "If-Match: *",
        "If-Range: x",
        "Connection: close",
        "Content-Length: 0",
        "Transfer-Encoding: chunked",
        "Upgrade: h2c",
        "Expect: 100-continue",
        "x-autowasm-peer: me",
        "x-unheard-of: 1",
        "host: a.second.one",
        "accept : */*",
        " folded: line",
        "accept: \xff",
        "accept: a\rb",
        "accept: a\0b",
        "user-agent: " + "a" * 4096,
        "no colon",
    ],
)
def test_leaves_every_other_field_to_aiohttp(field: str) -> None:
    with_field = ENVOY.replace("\r\n\r\n", f"\r\n{field}\r\n\r\n")
    assert plain_request(with_field.encode("latin-1")) is None


@pytest.mark.parametrize(
    "data",
    [
        ENVOY[:-1],
        ENVOY[:-2],
        ENVOY + "G",
        ENVOY + ENVOY,
        "\r\n" + ENVOY,
        ENVOY.replace("GET", "HEAD"),
        ENVOY.replace("GET", "get"),
        ENVOY.replace("HTTP/1.1", "HTTP/1.0"),
        ENVOY.replace("\r\n", "\n"),
        ENVOY.replace(DIGEST, DIGEST.upper()),
        ENVOY.replace(DIGEST, DIGEST[:-1]),
        ENVOY.replace(DIGEST, DIGEST + "?a b"),
        ENVOY.replace(DIGEST, DIGEST + "?a%"),
        ENVOY.replace(DIGEST, DIGEST + "#a"),
        ENVOY.replace(DIGEST, DIGEST + "/"),
        ENVOY.replace("host: wasmer.wasmer-system:8081\r\n", ""),
        ENVOY.replace("wasmer.wasmer-system:8081", ""),
        "",
    ],
)
def test_leaves_every_other_form_to_aiohttp(data: str) -> None:
    assert plain_request(data.encode()) is None
