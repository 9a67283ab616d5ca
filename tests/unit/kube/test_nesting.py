"""Objects nested deeper than decoders go are cut, and no other object is touched."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.api import validation
from autowasm.errors import SpecError
from autowasm.kube.codec import (
    DEEPEST,
    SLICE,
    DocumentCodec,
    WatchEvent,
    decode_any_depth,
    without_depths,
)
from autowasm.kube.errors import UnexpectedAnswer
from tests.fakes.autowasms import document

JSON = st.recursive(
    st.one_of(st.none(), st.integers(-5, 5), st.text('a"\\[]{}é', max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text('"\\{]', max_size=2), inner)
    ),
)


def deep(depth: int, *, name: str = "deep") -> bytes:
    text = json.dumps(document(name=name, pluginConfig="HERE"))
    return text.replace('"HERE"', '{"a":' * depth + "1" + "}" * depth).encode()


async def test_a_page_with_an_object_nested_too_deeply_still_has_all_objects() -> None:
    good = json.dumps(document(name="good")).encode()
    body = b'{"metadata":{},"items":[' + good + b"," + deep(9_000) + b"," + good + b"]}"
    page = await decode_any_depth(DocumentCodec().decode_page, body)
    assert [key.name for key, _ in page.items] == ["good", "deep", "good"]
    assert page.items[0][1] == json.loads(good)


async def test_a_watch_event_with_such_an_object_is_refused_by_parsing_and_nothing_else() -> None:
    line = b'{"type":"ADDED","object":' + deep(1_500) + b"}"
    event = await decode_any_depth(DocumentCodec().decode_event, line)
    assert isinstance(event, WatchEvent)
    with pytest.raises(SpecError, match="nested deeper") as caught:
        validation.parse(event.object)
    assert len(str(caught.value)) < 1000


@given(JSON)
async def test_shallow_documents_are_unchanged(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    assert await without_depths(text) == text


@given(JSON, st.integers(0, 5))
async def test_only_deeper_values_are_removed(value: Any, beyond: int) -> None:
    inner = json.dumps(value).encode()
    around = DEEPEST + beyond
    text = b'[0,{"k":' * (around // 2) + inner + b'},"]"]' * (around // 2)
    cut = await without_depths(text)
    shown: Any = msgspec.json.decode(cut)
    for _ in range(DEEPEST // 2):
        assert shown[0] == 0
        assert shown[2] == "]"
        shown = shown[1]["k"]


async def test_invalid_json_is_refused_without_endless_decoding() -> None:
    for text in (b"[" * 5_000, b'{"a' * 900, b"]" * 10, b'"' + b"[" * 900):
        with pytest.raises(UnexpectedAnswer):
            await decode_any_depth(DocumentCodec().decode_page, text)


async def test_a_million_brackets_leave_turns_to_others() -> None:
    text = b"[" + b",".join([b"[" * 9_000 + b"]" * 9_000] * 50) + b"]"
    cutting = asyncio.create_task(without_depths(text))
    iterations = 0
    while not cutting.done():
        await asyncio.sleep(0)
        iterations += 1
    assert iterations >= text.count(b"[") * 2 // SLICE
    assert len(cutting.result()) < len(text) / 10
