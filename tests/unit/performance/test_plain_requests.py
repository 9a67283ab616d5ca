"""Which requests are taken without aiohttp."""

import time
from typing import Any

import pytest

from autowasm.blobs.files import Blob
from autowasm.digest import Sha256Hex, Signature
from autowasm.performance.fastpath import ResponseHeads, plain_request

DIGEST = "ab" * 32
ENVOY = (
    f"GET /wasm/{DIGEST} HTTP/1.1\r\n"
    "host: wasmer.wasmer-system:8081\r\n"
    "x-envoy-internal: true\r\n"
    "x-forwarded-for: 10.0.0.7\r\n"
    "x-envoy-expected-rq-timeout-ms: 30000\r\n"
    "\r\n"
)


def test_takes_the_request_of_envoy() -> None:
    assert plain_request(ENVOY.encode()) == DIGEST


def test_takes_the_query_that_makes_envoy_ask_once_more() -> None:
    assert plain_request(ENVOY.replace(DIGEST, DIGEST + "?r=7&anything").encode()) == DIGEST


def test_takes_the_request_of_curl() -> None:
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


def with_field(field: str) -> bytes:
    return f"GET /wasm/{DIGEST} HTTP/1.1\r\nhost: h\r\n{field}\r\n\r\n".encode()


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
@pytest.mark.parametrize(
    "name",
    [
        "user-agent",
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "pragma",
        "x-request-id",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-client-cert",
        "x-envoy-a",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-" + "a" * 40,
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-s",
        "x-b3-" + "s" * 20,
    ],
)
def test_takes_fields_that_change_no_answer_in_any_case(name: str, change: Any) -> None:
    assert plain_request(with_field(f"{change(name)}: 1")) == DIGEST


@pytest.mark.parametrize(
    "name",
    [
        "x-envoy-",
        "x-envoy-" + "a" * 41,
        "x-envoy-1",
        "x-b3-",
        "x-b3-" + "s" * 21,
        "xb3",
        "accept-",
        "accept-charset",
        "acceptX",
        "",
    ],
)
def test_leaves_names_that_only_resemble_them_to_aiohttp(name: str) -> None:
    assert plain_request(with_field(f"{name}: 1")) is None


@pytest.mark.parametrize("value", ["", " ", "\t", "a\tb", "~", " !", "a:b, c"])
def test_takes_every_visible_character_of_a_value(value: str) -> None:
    assert plain_request(with_field(f"accept:{value}")) == DIGEST


@pytest.mark.parametrize("character", ["\x00", "\x08", "\n", "\x0b", "\r", "\x1f", "\x7f", "\x80"])
def test_leaves_values_with_control_characters_to_aiohttp(character: str) -> None:
    assert plain_request(with_field(f"accept: a{character}b")) is None


@pytest.mark.parametrize(
    ("query", "taken"),
    [
        ("?", True),
        ("?r=1", True),
        ("?a-Z_0.~&=", True),
        ("?" + "a" * 128, True),
        ("?" + "a" * 129, False),
        ("?a?b", False),
        ("?a/b", False),
        ("?a+b", False),
        ("&a", False),
    ],
)
def test_takes_short_queries_of_plain_characters(query: str, taken: bool) -> None:
    found = plain_request(ENVOY.replace(DIGEST, DIGEST + query).encode())
    assert found == (DIGEST if taken else None)


@pytest.mark.parametrize(("length", "taken"), [(4095, True), (4096, True), (4097, False)])
def test_takes_requests_up_to_4096_bytes(length: int, taken: bool) -> None:
    data = with_field("accept: ")
    data = with_field("accept: " + "a" * (length - len(data)))
    assert len(data) == length
    assert plain_request(data) == (DIGEST if taken else None)


@pytest.mark.parametrize(
    ("digits", "taken"),
    [("0123456789abcdef" * 4, True), ("g" * 64, False), ("a" * 63, False), ("a" * 65, False)],
)
def test_takes_64_hexadecimal_digits(digits: str, taken: bool) -> None:
    assert plain_request(ENVOY.replace(DIGEST, digits).encode()) == (digits if taken else None)


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("host:h", True),
        ("HOST:   h", True),
        ("host: !", True),
        ("host: ~", True),
        ("host:", False),
        ("host: ", False),
        ("host:\th", False),
        ("accept: host: h", False),
        ("x-forwarded-for: 1\r\nhost: h\r\nHost: h", False),
        ("host: h\r\nhost:", False),
        ("host:\r\nhost: h", False),
        ("host:\tx\r\nHOST: h", False),
    ],
)
def test_takes_exactly_one_host_that_is_not_empty(line: str, taken: bool) -> None:
    data = f"GET /wasm/{DIGEST} HTTP/1.1\r\naccept: */*\r\n{line}\r\n\r\n".encode()
    assert plain_request(data) == (DIGEST if taken else None)


@pytest.mark.parametrize(("agents", "taken"), [(1, True), (2, False)])
def test_takes_one_user_agent(agents: int, taken: bool) -> None:
    fields = "\r\n".join(["user-agent: curl", "User-Agent: curl"][:agents])
    assert plain_request(with_field(fields)) == (DIGEST if taken else None)


@pytest.mark.parametrize(("count", "taken"), [(64, True), (65, False)])
def test_takes_up_to_64_fields(count: int, taken: bool) -> None:
    fields = "\r\n".join(["b3: 1"] * (count - 1))
    assert plain_request(with_field(fields)) == (DIGEST if taken else None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall clock, in seconds since the epoch."""
    now = [784_111_777.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def blob(digits: str = "a", size: int = 1234) -> Blob:
    return Blob(Sha256Hex(digits * 64), -1, Signature(0, 0, size, 0, 0, 1))


def heads_of_wasm() -> ResponseHeads:
    return ResponseHeads(server="us", cache_control="immutable", content_type="application/wasm")


def test_head_describes_the_whole_blob(clock: list[float]) -> None:
    lines = heads_of_wasm().of(blob()).decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert lines[-2:] == ["", ""]
    fields = dict(line.split(": ", 1) for line in lines[1:-2])
    assert fields.pop("server") == "us"
    assert fields == {
        "etag": f'"sha256:{"a" * 64}"',
        "cache-control": "immutable",
        "accept-ranges": "bytes",
        "content-type": "application/wasm",
        "content-length": "1234",
        "Date": "Sun, 06 Nov 1994 08:49:37 GMT",
    }


def test_each_blob_has_its_own_head(clock: list[float]) -> None:
    heads = heads_of_wasm()
    first, second = heads.of(blob("a", 1)), heads.of(blob("b", 2))
    assert b"content-length: 1\r\n" in first
    assert b"content-length: 2\r\n" in second
    assert (heads.of(blob("a", 1)), heads.of(blob("b", 2))) == (first, second)


def test_heads_are_made_once_a_second_and_carry_its_date(clock: list[float]) -> None:
    heads = heads_of_wasm()
    first = heads.of(blob())
    clock[0] += 0.9
    assert heads.of(blob()) is first
    clock[0] += 0.1
    second = heads.of(blob())
    assert b"Date: Sun, 06 Nov 1994 08:49:38 GMT\r\n" in second
    assert heads.of(blob()) is second
    clock[0] -= 1  # the wall clock may be set back
    assert b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n" in heads.of(blob())
