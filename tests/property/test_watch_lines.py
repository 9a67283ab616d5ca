"""Lines of a watch: the same however the bytes are cut, bounded, and for any bytes an event or an ApiError."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.controller.pods.podmatching import pod_codec
from autowasm.kube.codec import Bookmark, DocumentCodec, WatchEvent
from autowasm.kube.errors import ApiError, UnexpectedAnswer
from autowasm.kube.listwatch import LineSplitter

PIECES = st.lists(st.binary(max_size=6) | st.sampled_from([b"\n", b"\r\n", b"{}\n"]), max_size=20)
TYPES = st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "", "other\n"])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["metadata", "name", "namespace", "annotations", "code", "status"]),
            inner,
        ),
    ),
    max_leaves=8,
)


@given(PIECES, st.integers(1, 7))
def test_lines_do_not_depend_on_how_they_are_cut(pieces: list[bytes], width: int) -> None:
    whole = b"".join(pieces)
    expected = [line for line in whole.split(b"\n")[:-1] if line not in (b"", b"\r")]
    for parts in (pieces, [whole[at : at + width] for at in range(0, len(whole), width)]):
        splitter = LineSplitter(limit=1000)
        assert [line for part in parts for line in splitter.feed(part)] == expected
        rest = whole.rpartition(b"\n")[2]
        assert list(splitter.feed(b"\n")) == [line for line in [rest] if line not in (b"", b"\r")]


@given(st.binary(min_size=1, max_size=5).filter(lambda piece: b"\n" not in piece))
def test_a_line_without_end_is_ended_at_the_limit(piece: bytes) -> None:
    splitter = LineSplitter(limit=50)
    fed = 0
    with pytest.raises(UnexpectedAnswer, match="longer than 50"):
        for _ in range(51):
            fed += len(piece)
            list(splitter.feed(piece))
    assert 50 < fed <= 50 + len(piece)


@given(st.binary(max_size=60) | st.tuples(TYPES, VALUES).map(
    lambda event: json.dumps({"type": event[0], "object": event[1]}).encode()
))  # fmt: skip
def test_any_line_is_an_event_or_an_error_of_the_api(line: bytes) -> None:
    for codec in (DocumentCodec(), pod_codec()):
        with contextlib.suppress(ApiError):
            assert isinstance(codec.decode_event(line), WatchEvent | Bookmark)
