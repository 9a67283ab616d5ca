"""Objects of very many values are cut, and all others are read whole."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.kube.codec import (
    MAX_ENCODED,
    Bookmark,
    DocumentCodec,
    EncodedDocument,
    WatchEvent,
    as_stored,
    decode_bounded,
)
from autowasm.kube.errors import Expired, UnexpectedAnswer
from autowasm.kube.resources import ObjectKey
from autowasm.limits import KubeLimits

FEW = DocumentCodec(KubeLimits(object_values=30))
MANY = {"numbers": list(range(40))}


def thing(name: str = "a", **fields: Any) -> dict[str, Any]:
    metadata = {"namespace": "ns", "name": name, "resourceVersion": "7"}
    return {"metadata": {**metadata, **fields.pop("metadata", {})}, **fields}


def line(kind: str, item: object) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode()


async def test_a_field_of_too_many_values_is_null_and_the_others_stay() -> None:
    given = thing(spec=MANY, status={"phase": "Failed"}, kind="Thing")
    read = await FEW.event(line("MODIFIED", given))
    wanted = {**given, "spec": None}
    assert read == WatchEvent("MODIFIED", ("ns", "a"), wanted, "7")  # type: ignore[arg-type]


async def test_spec_and_status_are_limited_separately() -> None:
    half = list(range(25))
    given = thing(spec={"a": half}, status={"a": half})
    read = await FEW.event(line("ADDED", given))
    assert isinstance(read, WatchEvent)
    assert read.object == given


async def test_metadata_keeps_small_fields() -> None:
    labels = {f"l{n}": "v" for n in range(40)}
    given = thing(metadata={"labels": labels, "uid": "u", "finalizers": ["f"]}, spec={"a": 1})
    read = await FEW.event(line("ADDED", given))
    assert isinstance(read, WatchEvent)
    del given["metadata"]["labels"]
    assert read.object == given


@pytest.mark.parametrize("text", [json.dumps(list(range(100))), "\\" * 99 + ",", '",{[' * 40])
async def test_content_of_strings_does_not_count_as_values(text: str) -> None:
    given = thing(spec={"config": text})
    read = await FEW.event(line("ADDED", given))
    assert isinstance(read, WatchEvent)
    assert read.object == given


async def test_on_a_page_each_object_counts_for_itself() -> None:
    items = [thing("a", spec={"a": [1] * 25}), thing("b", spec=MANY), thing("c", spec={"a": []})]
    body = {"metadata": {"resourceVersion": "9", "continue": "x"}, "items": items}
    page = await FEW.page(json.dumps(body).encode())
    assert [item["spec"] for _, item in page.items] == [items[0]["spec"], None, {"a": []}]
    assert (page.resource_version, page.continue_token) == ("9", "x")


async def test_bookmarks_and_errors_with_many_values_are_decoded() -> None:
    assert await FEW.event(line("BOOKMARK", thing(spec=MANY))) == Bookmark("7")
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "old", "details": MANY}
    with pytest.raises(Expired):
        await FEW.event(line("ERROR", gone))


@pytest.mark.parametrize(
    "text",
    [b"[" * 99, b"," * 99, b'{"metadata":{},"spec":[' + b"0," * 99, b'{"a":"\xff' + b"," * 99],
)
async def test_answer_that_is_no_object_is_refused(text: bytes) -> None:
    for read in (FEW.event(text), FEW.page(text), decode_bounded(text, most=30)):
        with pytest.raises(UnexpectedAnswer):
            await read


JSON = st.recursive(
    st.one_of(st.none(), st.integers(-5, 5), st.text('a,"\\[]{}é', max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text('",\\{]', max_size=2), inner)
    ),
)


def values(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(len(value) - 1, 0) + sum(map(values, value.values()))
    if isinstance(value, list):
        return 1 + max(len(value) - 1, 0) + sum(map(values, value))
    return 0


def strings(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(strings, value.values()))
    if isinstance(value, list):
        return sum(map(strings, value))
    return isinstance(value, str)


@given(JSON, st.integers(1, 30))
async def test_a_field_is_cut_only_if_it_has_more(value: Any, most: int) -> None:
    given = {"spec": value, "other": 1}
    read = await decode_bounded(json.dumps(given).encode(), most=most)
    if values(value) <= most and strings(value) <= most:
        assert read == given
    else:
        assert read in (given, {**given, "spec": None})
    if values(value) > most:
        assert read["spec"] is None


def stored_as(*items: dict[str, Any]) -> dict[ObjectKey, dict[str, Any]]:
    return {ObjectKey("ns", item["metadata"]["name"]): item for item in items}


def versioned(name: str, version: str, *, uid: str = "u", **fields: Any) -> dict[str, Any]:
    return thing(name, metadata={"resourceVersion": version, "uid": uid}, **fields)


async def test_an_unchanged_object_of_a_list_is_the_stored_one() -> None:
    same, changed, other = versioned("a", "1"), versioned("b", "2"), versioned("c", "3")
    known = stored_as(same, changed, other)
    items = [versioned("a", "1"), versioned("b", "7"), versioned("c", "3", uid="another")]
    body = json.dumps({"items": [*items, versioned("d", "4")], "metadata": {}}).encode()
    page = await DocumentCodec().page(body, stored=known.get)
    read = {key.name: item for key, item in page.items}
    assert read["a"] is same
    assert list(read.values()) == [same, *items[1:], versioned("d", "4")]
    assert not {id(read[name]) for name in "bcd"} & {id(item) for item in known.values()}


async def test_an_unchanged_object_is_the_stored_one_that_an_earlier_list_has_brought() -> None:
    body = json.dumps({"items": [versioned("a", "1"), versioned("b", "1")]}).encode()
    known = dict((await DocumentCodec().page(body)).items)
    body = json.dumps({"items": [versioned("a", "1"), versioned("b", "2")]}).encode()
    page = await DocumentCodec().page(body, stored=known.get)
    same, changed = (item for _, item in page.items)
    assert same is known[ObjectKey("ns", "a")]
    assert changed is not known[ObjectKey("ns", "b")]
    read = await DocumentCodec().event(line("ADDED", versioned("a", "1")), stored=known.get)
    assert isinstance(read, WatchEvent)
    assert read.object is same


@given(st.dictionaries(st.text(), JSON))
async def test_an_object_that_is_kept_encoded_reads_as_the_one_that_was_decoded(
    given_: dict[str, Any],
) -> None:
    decoded = await decode_bounded(json.dumps(given_).encode(), most=1_000_000)
    kept = as_stored(decoded)
    assert repr(dict(kept)) == repr(decoded)  # the same types and order
    assert kept == decoded
    assert kept == as_stored(dict(reversed(decoded.items())))
    assert kept != {**decoded, "another": 1}
    assert len(kept) == len(decoded)


async def test_a_long_object_is_kept_decoded_and_a_number_of_any_size_is_kept() -> None:
    short, long = {"a": 10**40, "b": 1.0, "c": -0.0}, {"a": "x" * MAX_ENCODED}
    assert as_stored(long) is long
    assert isinstance(as_stored(short), EncodedDocument)
    assert repr(dict(as_stored(short))) == repr(short)


async def test_an_unchanged_object_of_a_streaming_list_is_the_stored_one() -> None:
    same = versioned("a", "1", spec={"a": 1})
    read = await DocumentCodec().event(
        line("ADDED", versioned("a", "1")), stored=stored_as(same).get
    )
    assert isinstance(read, WatchEvent)
    assert read.object is same
    assert (read.key, read.resource_version) == (ObjectKey("ns", "a"), "1")


async def test_an_object_that_a_server_sends_without_a_version_is_always_decoded() -> None:
    known = versioned("a", "", spec={"a": 1})
    for sent in (versioned("a", ""), {"metadata": {"namespace": "ns", "name": "a"}}):
        read = await DocumentCodec().event(line("ADDED", sent), stored=stored_as(known).get)
        assert isinstance(read, WatchEvent)
        assert read.object == sent


async def test_nothing_but_an_addition_is_taken_from_the_store() -> None:
    known = stored_as(versioned("a", "1", spec={"a": 1}))
    for kind in ("MODIFIED", "DELETED"):
        read = await DocumentCodec().event(line(kind, versioned("a", "1")), stored=known.get)
        assert isinstance(read, WatchEvent)
        assert (read.type, read.object) == (kind, versioned("a", "1"))
    gone = {"kind": "Status", "code": 410, "message": "old", "reason": "Expired"}
    with pytest.raises(Expired):
        await DocumentCodec().event(line("ERROR", gone), stored=known.get)


@pytest.mark.parametrize("most", [30, 1000])
async def test_managed_fields_keep_manager_and_time_without_the_fields(most: int) -> None:
    codec = DocumentCodec(KubeLimits(object_values=most))
    entry = {"manager": "kubectl", "time": "2026-01-01T00:00:00Z"}
    managed = [{**entry, "fieldsV1": {"f:spec": {}}}]
    sent = thing(metadata={"managedFields": managed}, spec={"a": list(range(20))}, more=[1] * 20)
    page = json.dumps({"items": [sent], "metadata": {}}).encode()
    read = await codec.event(line("ADDED", sent))
    assert isinstance(read, WatchEvent)
    for found in (read.object, (await codec.page(page)).items[0][1]):
        assert found == {**sent, "metadata": {**sent["metadata"], "managedFields": [entry]}}


@pytest.mark.parametrize("managed", ["x", [None, "x", {}], {"fieldsV1": {}}])
async def test_managed_fields_of_another_shape_stay(managed: object) -> None:
    sent = thing(metadata={"managedFields": managed})
    read = await DocumentCodec().event(line("ADDED", sent))
    assert isinstance(read, WatchEvent)
    assert read.object == sent
