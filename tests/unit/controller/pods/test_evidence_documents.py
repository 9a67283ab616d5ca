"""The downloads of a replica, read from its document."""

import json
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autowasm.controller.pods import loadreport
from autowasm.controller.pods.loadreport import decode_object, epoch, number, read_log


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (-1, 7.0),
        (-0.5, 7.0),
        (1.5, 1.5),
        (2**53, 2.0**53),
        (2**53 + 1, 7.0),
        (float("inf"), 7.0),
        (float("nan"), 7.0),
        ("1", 7.0),
        (None, 7.0),
        ([], 7.0),
    ],
)
def test_a_value_that_no_replica_would_send_is_replaced_by_the_default(
    value: object, expected: float
) -> None:
    assert number(value, 7.0) == expected
    assert type(number(value, 7.0)) is float
    assert number(value) == (0.0 if expected == 7.0 else expected)


def test_a_time_is_seconds_since_the_epoch() -> None:
    assert epoch("1970-01-01T00:01:00Z") == 60.0
    assert epoch("2027-01-15T08:00:00Z") == 1_800_000_000.0
    assert epoch("") == epoch("yesterday") == 0.0


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b"1", b"\xff", b"[" * 100_000, b'"x"', b"null"]
)
def test_non_object_is_read_as_an_empty_object(text: bytes) -> None:
    assert decode_object(text) == {}
    found, addresses = read_log(text)
    assert (found, list(addresses)) == ({}, [])


def test_an_object_is_read_whole() -> None:
    assert decode_object(b'{"instance":"a","up":1}') == {"instance": "a", "up": 1}
    found, addresses = read_log(b'{"instance":"a","up":1}')
    assert (found, list(addresses)) == ({"instance": "a", "up": 1}, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"up":1,"seen":{}}', []),
        (b'{"seen":{"x":{"ok":1}}}', [("x", {"ok": 1})]),
        (b'{"up":1,"seen":{"x":{"ok":1},"y":{}}}', [("x", {"ok": 1}), ("y", {})]),
        (b'{"up":1,"seen":{"x":[],"y":{"ok":2},"z":3}}', [("y", {"ok": 2})]),
        (b'{"up":1,"seen":[{"x":{}}]}', []),
        (b'{"up":1,"seen":null}', []),
        (b'{"up":1,"seen":{"x":{"ok":1}},"downloads":{"a":{}}}', [("x", {"ok": 1})]),
        (b'{"up":1, "seen": {"x":{"ok":1}}}', [("x", {"ok": 1})]),
    ],
)
def test_addresses_and_their_ages_are_found_in_each_form(
    text: bytes, expected: list[tuple[str, dict[str, Any]]]
) -> None:
    assert list(read_log(text)[1]) == expected


@pytest.mark.parametrize(
    "text",
    [
        b'{"up":1,"seen":{"x":{"ok":1},,"y":{}}}',
        b'{"up":1,"seen":{"x":{"ok":' + b"[" * 100_000 + b"}}}",
        b'{"up":}"seen":{"x":{}}}',
    ],
)
def test_addresses_that_cannot_be_read_are_none(text: bytes) -> None:
    assert list(read_log(text)[1]) == []


def test_fields_behind_the_addresses_are_read() -> None:
    found, addresses = read_log(b'{"seen":{"x":{"ok":1}},"up":1}')
    assert found["up"] == 1
    assert list(addresses) == [("x", {"ok": 1})]


def test_fields_before_the_addresses_are_read_without_them() -> None:
    found, _ = read_log(b'{"instance":"a","up":1,"seen":{"x":{"ok":1}}}')
    assert found == {"instance": "a", "up": 1, "seen": {}}


def decoded(size: int) -> list[int]:
    """The sizes of the pieces of a document with a first entry of `size` bytes, then small ones and a large one."""
    entries = [f'"{"x" * (size - 11)}":{{"ok":1}}', '"y":{}', '"z":{}', f'"{"w" * 20_000}":{{}}']
    text = f'{{"up":1,"seen":{{{",".join(entries)}}}}}'.encode()
    decode, sizes = msgspec.json.decode, []

    def counted(data: bytes) -> Any:
        sizes.append(len(data) - len("{}"))
        return decode(data)

    found, addresses = read_log(text)
    assert found["up"] == 1
    with patch.object(msgspec.json, "decode", counted):
        assert [len(address) for address, _ in addresses] == [size - 11, 1, 1, 20_000]
    return sizes


def test_a_piece_ends_with_the_first_entry_that_ends_behind_16_kib() -> None:
    piece, small, large = 16 * 1024, len('"y":{}'), 20_000 + len('"":{}')
    rest = 2 * (small + 1) + large
    assert decoded(piece + 1) == [piece + 1, rest]
    assert decoded(piece) == [piece + 1 + small, rest - small - 1]


_AGES = st.dictionaries(st.sampled_from(["ok", "error", "status"]), st.integers(0, 600), max_size=3)
_ANYTHING = st.recursive(
    st.none() | st.integers(-9, 9) | st.text('{},:"\\\\x', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('{},"x', max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=settings().max_examples * 3 // 2)
@given(
    st.dictionaries(st.text('{},:"\\\\x1.', max_size=6), _AGES | _ANYTHING, max_size=12),
    st.integers(1, 40),
    st.booleans(),
)
def test_a_document_in_pieces_is_the_whole_document(
    addresses: dict[str, Any], size: int, spaced: bool
) -> None:
    separators = (", ", ": ") if spaced else (",", ":")
    told = json.dumps({"instance": "a", "up": 1, "seen": addresses}, separators=separators).encode()
    with patch.object(loadreport, "_PIECE", size):
        found, pieces = read_log(told)
        # What follows a piece that cannot be read on its own is read again with it: the last one counts.
        assert dict(pieces) == {
            at: ages for at, ages in addresses.items() if isinstance(ages, dict)
        }
    assert (found["instance"], found["up"]) == ("a", 1)


def test_a_large_document_is_decoded_in_pieces() -> None:
    addresses = {f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}": {"ok": 1.5} for n in range(50_000)}
    told = json.dumps({"instance": "a", "up": 1, "seen": addresses}, separators=(",", ":")).encode()
    decode, sizes = msgspec.json.decode, []

    def counted(data: bytes) -> Any:
        sizes.append(len(data))
        return decode(data)

    with patch.object(msgspec.json, "decode", counted):
        assert dict(read_log(told)[1]) == addresses
    assert max(sizes) < 20_000
    assert sum(sizes) < 1.1 * len(told)
