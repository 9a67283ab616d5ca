"""Requests, answers and properties of the user, as the sandbox takes them."""

from pathlib import Path
from typing import Any

import pytest

from autowasm.errors import UsageError
from autowasm.sandbox.clusteranswers import GrpcAnswer, HttpAnswer
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.properties import merged
from autowasm.trial import inputs, suite


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("/x?a=b", Request("GET", "/x?a=b")),
        ("POST /x", Request("POST", "/x")),
        ("OPTIONS *", Request("OPTIONS", "*")),
        ("GET https://a.example:1/x", Request("GET", "/x", "a.example:1", "https")),
        ("http://a.example", Request("GET", "/", "a.example", "http")),
        ("http://a.example?q", Request("GET", "/?q", "a.example", "http")),
    ],
)
def test_request_line_has_method_and_path(text: str, request_: Request) -> None:
    assert inputs.request_line(text) == request_


@pytest.mark.parametrize("text", ["GET x", "GET /a b", "G(T /", "x"])
def test_wrong_request_line_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--request: must be 'METHOD /path' or '/path'"):
        inputs.request_line(text)


def test_header_is_split_at_its_first_colon_and_in_lower_case() -> None:
    assert inputs.header("X-Time: 10:00 ", flag="-H") == ("x-time", "10:00")


@pytest.mark.parametrize("text", ["x", "a b: c", ": c", "a: b\nc: d"])
def test_header_that_http_cannot_carry_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-H: "):
        inputs.header(text, flag="-H")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["source.address=10.0.0.1:5"], {"source": {"address": "10.0.0.1:5"}}),
        (["a.b=1", "a.c=true"], {"a": {"b": 1, "c": True}}),
        (['a="1"'], {"a": "1"}),
        (["a=[1, 2]", "b={x"], {"a": [1, 2], "b": "{x"}),
        ([r"metadata.filter_metadata.envoy\.jwt.sub=me"], {"metadata": {"filter_metadata": {"envoy.jwt": {"sub": "me"}}}}),
        (["a=", "b=x=y"], {"a": "", "b": "x=y"}),
    ],
)  # fmt: skip
def test_property_has_a_path_and_a_typed_value(given: list[str], found: dict[str, Any]) -> None:
    result: dict[str, Any] = {}
    for text in given:
        inputs.given_property(text, result)
    assert result == found


@pytest.mark.parametrize("given", [["a"], ["=b"], ["a..b=c"], ["a=1", "a.b=1"]])
def test_wrong_property_is_refused(given: list[str]) -> None:
    result: dict[str, Any] = {}
    with pytest.raises(UsageError, match="--property"):
        for text in given:
            inputs.given_property(text, result)


@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 403 Forbidden\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n",
        b"HTTP/2 403\nx-a: b\n\nno\r\n",
    ],
)
def test_answer_is_read_from_the_output_of_curl(content: bytes) -> None:
    answer = inputs.http_answer(content, name="f")
    assert (answer.status, answer.headers) == (403, (("x-a", "b"),))
    assert answer.body.rstrip() == b"no"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f: line 1: must be a status line"),
        (b"403\n\n", "f: line 1: must be a status line"),
        (b"HTTP/1.1 200 OK\nx: y\nbody", "f: line 3: must be 'NAME: VALUE'"),
    ],
)
def test_wrong_answer_is_refused_with_its_line(content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        inputs.http_answer(content, name="f")


def test_answer_file_is_read_by_its_name(tmp_path: Path) -> None:
    text = "- {status: 503, body: {json: {a: 1}}, delay: 2s}\n- broken: true\n- grpc: {messages: [AQI=], status: 7}\n"
    (tmp_path / "a.yaml").write_text(text)
    answers = inputs.answer_file(tmp_path / "a.yaml", flag="--call")
    assert isinstance(answers, list)
    broken = answers.pop(1)
    assert broken.status == 503
    assert broken.headers[0] == ("content-length", str(len(broken.body)))
    assert answers == [
        HttpAnswer(503, (), b'{"a":1}', (), 2.0),
        GrpcAnswer([b"\1\2"], 7),
    ]
    (tmp_path / "b.json").write_text('{"body": {"file": "c"}}')
    (tmp_path / "c").write_bytes(b"\xff")
    assert inputs.answer_file(tmp_path / "b.json", flag="--call") == HttpAnswer(body=b"\xff")
    (tmp_path / "d.yaml").write_text("status: 200\ngrpc: {}\nbroken: true\n")
    with pytest.raises(UsageError, match=r"--call .*d\.yaml: line 1: .*are mutually exclusive"):
        inputs.answer_file(tmp_path / "d.yaml", flag="--call")
    with pytest.raises(UsageError, match="No such file"):
        inputs.answer_file(tmp_path / "absent", flag="--call")


def test_length_is_added_as_a_client_or_a_service_does() -> None:
    def names(message: Request | Response) -> list[tuple[str, str]]:
        return list(inputs.with_length(message).headers)

    assert names(Request()) == []
    assert names(Request(body=(b"abc",))) == [("content-length", "3")]
    assert names(Request(body=(b"a", b"b"))) == [("transfer-encoding", "chunked")]
    assert names(Request(body=(b"a",), headers=(("content-length", "9"),))) == [
        ("content-length", "9")
    ]
    assert names(Response()) == [("content-length", "0")]
    assert names(Response(204)) == []
    assert names(Response(trailers=(("a", "b"),))) == [("transfer-encoding", "chunked")]


def test_configuration_equals_that_of_an_autowasm() -> None:
    assert inputs.configuration_of({"b": 1.0, "a": "ü"}) == '{"a":"ü","b":1}'.encode()
    assert inputs.configuration_of(" text\n") == b" text\n"


def test_body_may_be_text_json_base64_pieces_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\0")

    def body(given: suite.AnyBody) -> tuple[bytes, ...]:
        return inputs.body_of(given, folder=tmp_path)

    assert body("") == ()
    assert body("ü") == ("ü".encode(),)
    assert body(suite.Body(json={"a": [1]})) == (b'{"a":[1]}',)
    assert body(suite.Body(base64="AA==")) == (b"\0",)
    assert body(suite.Body(pieces=["a", "b"])) == (b"a", b"b")
    assert body(suite.Body(file="f")) == (b"\0",)
    with pytest.raises(UsageError, match="base64: not base64"):
        body(suite.Body(base64="!"))


def test_properties_of_a_case_are_merged_into_the_others() -> None:
    base = {"source": {"address": "a", "port": 1}, "x": 1}
    assert merged(base, {"source": {"port": 2}, "x": {"y": 1}}) == {
        "source": {"address": "a", "port": 2},
        "x": {"y": 1},
    }
    assert base["source"] == {"address": "a", "port": 1}
