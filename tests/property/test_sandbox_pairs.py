"""Header maps in the module's memory: all that is packed is unpacked, and no other bytes are pairs."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from autowasm.sandbox.headers import MAX_BYTES, MAX_COUNT, HeaderMap, MapKind, pack, unpack

pairs = st.lists(st.tuples(st.binary(max_size=60), st.binary(max_size=60)), max_size=40)


@given(pairs)
@example([(b"", b"")])
@example([(b"a\0b", b"\0")])
def test_packed_pairs_round_trip(given_pairs: list[tuple[bytes, bytes]]) -> None:
    assert unpack(pack(given_pairs)) == given_pairs


@given(st.binary(max_size=400))
@example(b"")
@example(b"\0\0\0\0")
@example(b"\xff\xff\xff\xff" * 4)
@settings(max_examples=300)
def test_bytes_are_pairs_only_if_these_pack_to_them(data: bytes) -> None:
    found = unpack(data)
    assert not found or pack(found) == data


@given(pairs.filter(bool), st.data())
def test_one_changed_byte_yields_no_pairs_or_exactly_those_of_the_bytes(
    given_pairs: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    packed = bytearray(pack(given_pairs))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    found = unpack(bytes(packed))
    assert not found or pack(found) == bytes(packed)


def test_more_than_envoy_reads_are_no_pairs() -> None:
    assert len(unpack(pack([(b"", b"")] * MAX_COUNT))) == MAX_COUNT
    assert unpack(pack([(b"", b"")] * (MAX_COUNT + 1))) == []
    assert unpack(pack([(b"", b"x" * MAX_BYTES)])) == []


names = st.sampled_from(
    [b":path", b"Host", b":authority", b"x-a", b"X-A", b"via", b"cookie", b"date"]
)
operations = st.lists(
    st.tuples(st.sampled_from(["add", "set", "assign", "remove"]), names, st.binary(max_size=5)),
    max_size=30,
)


@given(operations, st.sampled_from(MapKind))
def test_maps_keep_pseudo_headers_first_and_inline_headers_once(
    made: list[tuple[str, bytes, bytes]], kind: MapKind
) -> None:
    headers = HeaderMap(kind)
    for operation, name, value in made:
        if operation == "remove":
            headers.remove(name)
        else:
            getattr(headers, operation)(name, value)

    keys = [name for name, _ in headers]
    pseudo = [key.startswith(b":") for key in keys]
    assert pseudo == sorted(pseudo, reverse=True)
    assert all(key == key.lower() for key in keys)
    assert all(keys.count(key) <= 1 for key in kind.value)
    assert headers.byte_size == sum(len(name) + len(value) for name, value in headers)
    assert all(headers.get(key) == headers.values(key)[0] for key in keys)
