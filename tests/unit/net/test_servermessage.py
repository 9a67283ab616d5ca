"""Error messages of servers: real bodies of registries, object stores, token endpoints and proxies."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.net.errors import BODY_LIMIT, parse_message

S3 = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Request has expired</Message>'
    b"<X-Amz-Expires>60</X-Amz-Expires><Expires>2026-01-01T00:01:00Z</Expires><RequestId>R</RequestId></Error>"
)
AZURE = (
    b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?><Error><Code>AuthenticationFailed</Code><Message>Server failed to '
    b"authenticate the request.\nRequestId:1\nTime:2026</Message><AuthenticationErrorDetail>Signature not valid in the "
    b"specified time frame: Start [a] - Expiry [b] - Current [c]</AuthenticationErrorDetail></Error>"
)
COS = (
    b"<?xml version='1.0' encoding='utf-8' ?>\n<Error>\n\t<Code>AccessDenied</Code>\n\t<Message>Request has expired</Message>\n"
    b"\t<Resource>bucket</Resource>\n</Error>"
)
GCS = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>ExpiredToken</Code><Message>Invalid argument.</Message>"
    b"<Details>The provided token has expired. Request signature expired at: 2026</Details></Error>"
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'{"errors":[{"code":"DENIED","message":"would exceed the quota"}]}',
            "DENIED: would exceed the quota",
        ),
        (
            b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":"unknown tag=v1"}]}',
            "MANIFEST_UNKNOWN: manifest unknown, unknown tag=v1",
        ),
        (
            b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":[{"Type":"repository"}]}]}',
            "UNAUTHORIZED: authentication required",
        ),
        (b'{"errors":[{"code":"A","message":"a"},{"code":"B","message":"b"}]}', "A: a; B: b"),
        (b'{"errors":[{"status":403,"message":"Forbidden by policy"}]}', "Forbidden by policy"),
        (b'{"errors":[{"code":"UNSUPPORTED"}]}', "UNSUPPORTED"),
        (b'{"message":"denied: requested access"}', "denied: requested access"),
        (b'{"details":"incorrect username or password"}', "incorrect username or password"),
        (
            b'{"error":"invalid_grant","error_description":"the token has expired"}',
            "the token has expired, invalid_grant",
        ),
        (b'{"error":{"code":"NotFound","message":"no such thing"}}', "NotFound: no such thing"),
        (b'{"Message":"User is not authorized"}', "User is not authorized"),
        (
            b'{"errors":[{"code":"MANIFEST_INVALID","message":"invalid","detail":{"description":"no config"}}]}',
            "MANIFEST_INVALID: invalid, no config",
        ),
        (b'{"errors":["the name is wrong"]}', '{"errors": ["the name is wrong"]}'),
        (b'{\n "reason": "quota of project 7"\n}', '{"reason": "quota of project 7"}'),
        (b'{"reason": "no", "access_token": "abc"}', '{"reason": "no", "access_token": "\u2026"}'),
        (b'{"token":"abc"}', ""),
        (
            b'<?xml version="1.0"?>\n<d:error xmlns:d="DAV:">\n <s:message>No public access &amp; more</s:message></d:error>',
            "No public access & more",
        ),
        (b"{}", ""),
        (b'{"errors":[]}', ""),
        (b'{"errors":[1,null]}', ""),
        (b"[" * 9000, "[" * 300 + "…"),
        (S3, "AccessDenied: Request has expired"),
        (S3[: S3.index(b"<X-Amz")], "AccessDenied: Request has expired"),
        (COS, "AccessDenied: Request has expired"),
        (
            AZURE,
            "AuthenticationFailed: Server failed to authenticate the request., Signature not valid in the "
            "specified time frame: Start [a] - Expiry [b] - Current [c]",
        ),
        (
            GCS,
            "ExpiredToken: Invalid argument., The provided token has expired. Request signature expired at: 2026",
        ),
        (b"\n\nfirst line\nsecond line\n", "first line"),
        (b"Client sent an HTTP request to an HTTPS server.\n", "Client sent an HTTP request to an HTTPS server."),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\xff\xfe\xff\x80\x81", ""),
        (b"", ""),
    ],
)  # fmt: skip
def test_the_sentence_of_the_server_is_found(body: bytes, expected: str) -> None:
    assert str(parse_message(body)) == expected


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"<html><head><title>413 Request Entity Too Large</title></head>", "text/html", "413 Request Entity Too Large"),
        (b"<!DOCTYPE html>\n<title>Sign in &amp; go</title>", "", "Sign in & go"),
        (b"<html><script>var a = 1;</script><h1>Blocked</h1> by proxy</html>", "text/html; charset=utf-8", "Blocked  by proxy"),
    ],
)  # fmt: skip
def test_web_page_is_recognized_and_shown_by_its_title(
    body: bytes, kind: str, expected: str
) -> None:
    parsed = parse_message(body, kind)
    assert parsed.is_page
    assert str(parsed).split() == expected.split()


def test_entities_are_never_expanded() -> None:
    bomb = b'<!DOCTYPE e [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    body = b"<?xml version='1.0'?>" + bomb + b"<Error><Code>X</Code><Message>&b;</Message></Error>"
    external = (
        b'<!DOCTYPE e [<!ENTITY x SYSTEM "file:///etc/passwd">]><Error><Code>&x;</Code></Error>'
    )
    for document in (body, external):
        parsed = str(parse_message(document))
        assert "aaaaaaaaaaaaaaaaaaaa" not in parsed
        assert "root:" not in parsed
        assert len(parsed) <= 301


def test_no_credential_and_no_query_is_shown() -> None:
    text = (
        "see https://bob:pw@r.example/x?sig=topsecret#f and /path?token=topsecret, sent Basic dG9wc2VjcmV0 and "
        "Bearer topsecret.jwt for hunter22"
    )
    parsed = str(
        parse_message(json.dumps({"message": text}).encode(), secrets=("hunter22", "pw", ""))
    )
    assert "https://r.example/x" in parsed
    for secret in ("topsecret", "dG9wc2VjcmV0", "hunter22", "bob", "pw@"):
        assert secret not in parsed


@given(
    st.binary(max_size=2000),
    st.sampled_from(["", "text/html", "application/json", "application/xml"]),
)
def test_any_body_gives_one_short_printable_line(body: bytes, kind: str) -> None:
    parsed = str(parse_message(body, kind))
    assert len(parsed) <= 2 * 301 + 2
    assert parsed.isprintable()


@given(st.text(max_size=400), st.text(max_size=400))
def test_any_message_is_shown_as_one_line(code: str, message: str) -> None:
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    parsed = str(parse_message(body))
    assert parsed.isprintable()
    assert "\n" not in parsed


def test_a_long_body_is_read_to_its_bound_only() -> None:
    assert str(parse_message(b" " * BODY_LIMIT + b"late")) == ""


@given(st.integers(1, 3000), st.sampled_from([b"1", b'"x"', b'{"b":"x"}']))
def test_json_of_any_depth_is_read(depth: int, innermost: bytes) -> None:
    assert len(str(parse_message(b'{"a":' * depth + innermost + b"}" * depth))) <= 301
