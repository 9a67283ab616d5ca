"""From JSON to pages and events."""

import json
from typing import Any

import pytest

from autowasm.controller.pods.podmatching import pod_codec
from autowasm.kube.codec import Bookmark, DocumentCodec, Page, WatchEvent
from autowasm.kube.errors import Expired, UnexpectedAnswer

CODEC = DocumentCodec()
PODS = pod_codec()


def thing(name: str, rv: str = "7") -> dict[str, Any]:
    return {
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": rv},
        "spec": {"a": [1]},
    }


def line(kind: str, item: object) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode()


def test_a_page_has_its_objects_by_key_and_says_whether_there_is_more() -> None:
    document = {"metadata": {"resourceVersion": "9", "continue": "x"}, "items": [thing("a")]}
    read = CODEC.decode_page(json.dumps(document).encode())
    assert read == Page([(("ns", "a"), thing("a"))], "9", "x")  # type: ignore[list-item]


def test_an_empty_list_may_be_null() -> None:
    assert CODEC.decode_page(b'{"metadata":{"resourceVersion":"9"},"items":null}').items == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"items": 3}', b"\xff"])
def test_malformed_page_of_objects_is_refused(body: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        CODEC.decode_page(body)


@pytest.mark.parametrize("kind", ["ADDED", "MODIFIED", "DELETED"])
def test_an_event_carries_object_key_and_position(kind: str) -> None:
    read = CODEC.decode_event(line(kind, thing("a", "12")))
    assert read == WatchEvent(kind, ("ns", "a"), thing("a", "12"), "12")  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", [CODEC, PODS])
def test_bookmarks_and_errors_need_not_look_like_the_resource(codec: Any) -> None:
    plain = {"kind": "Pod", "metadata": {"resourceVersion": "8"}}
    assert codec.decode_event(line("BOOKMARK", plain)) == Bookmark("8")
    plain["metadata"]["annotations"] = {"k8s.io/initial-events-end": "true"}  # type: ignore[index]
    assert codec.decode_event(line("BOOKMARK", plain)) == Bookmark("8", True)
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    with pytest.raises(Expired, match="too old"):
        codec.decode_event(line("ERROR", gone))


@pytest.mark.parametrize(
    "text",
    [
        b"Unauthorized",
        b"{",
        b'{"type":"ADDED"}',
        line("NEWS", thing("a")),
        b"null",
        b"\xff",
        line("ADDED", {}),
        line("ADDED", {"metadata": 3}),
    ],
)
def test_a_line_that_is_no_event_is_refused(text: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        CODEC.decode_event(text)


def test_an_object_of_another_shape_is_refused() -> None:
    with pytest.raises(UnexpectedAnswer):
        PODS.decode_event(line("ADDED", {"metadata": {"name": 3}}))
