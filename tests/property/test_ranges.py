"""server.ranges against a second reading of RFC 9110, written as sets of byte positions."""

import re

import hypothesis.strategies as st
import pytest
from hypothesis import given

from autowasm.server.ranges import Conditions, Decision, decide

ETAG = '"sha256:' + "a" * 64 + '"'


def oracle(field: str, size: int) -> tuple[int, set[int]]:
    """Status and the positions to send, for a GET with `Range: field`. Sections 14.1.1, 14.1.2, 14.2, 5.6.1.2."""
    everything = (200, set(range(size)))
    if not re.match(r"(?i)bytes=", field):
        return everything
    pieces = field[len("bytes=") :].split(",")
    if len(pieces) > 1:
        pieces = [re.sub(r"^[ \t]+|[ \t]+$", "", piece) for piece in pieces]
    pieces = [piece for piece in pieces if piece != ""]
    if len(pieces) != 1:
        return everything
    piece = pieces[0]
    if re.match(r"^[0-9]+-[0-9]+$", piece) and "\n" not in piece:
        first, last = (int(number) for number in piece.split("-"))
        if last < first:
            return everything
        wanted = {position for position in range(size) if first <= position <= last}
    elif re.match(r"^[0-9]+-$", piece) and "\n" not in piece:
        wanted = {position for position in range(size) if position >= int(piece[:-1])}
    elif re.match(r"^-[0-9]+$", piece) and "\n" not in piece:
        length = int(piece[1:])
        wanted = {position for position in range(size) if position >= size - length}
    else:
        return everything
    return (206, wanted) if wanted else (416, set())


numbers = st.one_of(
    st.integers(0, 40).map(str), st.sampled_from(["007", "18446744073709551616", "9" * 100])
)
specs = st.one_of(
    st.tuples(numbers, numbers).map("-".join),
    numbers.map(lambda n: n + "-"),
    numbers.map(lambda n: "-" + n),
    st.sampled_from(["-", "", "a-b", "0--1", "+1-2", "1-2-3", "٣-٤", " 1-2", "1 -2", "0x1-2"]),
)
separators = st.sampled_from([",", ", ", " ,", ",,", " , ,\t"])
units = st.sampled_from(["bytes", "bytes", "bytes", "Bytes", "lines", "byte", "", "bytes "])


@st.composite
def fields(draw: st.DrawFn) -> str:
    parts = draw(st.lists(specs, min_size=1, max_size=3))
    text = parts[0]
    for part in parts[1:]:
        text += draw(separators) + part
    text = draw(st.sampled_from(["", "", "", ",", ", "])) + text
    text += draw(st.sampled_from(["", "", "", ",", " ,"]))
    return draw(units) + draw(st.sampled_from(["=", "=", "=", "", ":"])) + text


@given(fields(), st.integers(1, 30))
def test_one_valid_byte_range_is_honoured_and_all_else_ignored(field: str, size: int) -> None:
    decision = decide("GET", Conditions(range=field), etag=ETAG, size=size)
    status, positions = oracle(field.strip(" \t"), size)
    assert decision.status == status
    if status != 416:
        sent = set(range(decision.offset, decision.offset + decision.count))
        assert sent == positions


@given(st.text(), st.integers(0, 30))
def test_no_text_breaks_the_parser_or_leaves_the_file(field: str, size: int) -> None:
    conditions = Conditions(range=field, if_none_match=field, if_match=None, if_range=None)
    decision = decide("GET", conditions, etag=ETAG, size=size)
    assert decision.status in {200, 206, 304, 416}
    assert 0 <= decision.offset <= decision.offset + decision.count <= size


tags = st.sampled_from([ETAG, "W/" + ETAG, '"other"', 'W/"other"', '""', '"a,b"'])


@given(st.lists(tags, min_size=1, max_size=4), separators)
def test_if_none_match_compares_weakly_and_if_match_strongly(
    members: list[str], separator: str
) -> None:
    field = separator.join(members)
    have = decide("GET", Conditions(if_none_match=field), etag=ETAG, size=9)
    assert (have.status == 304) == any(tag in {ETAG, "W/" + ETAG} for tag in members)
    same = decide("GET", Conditions(if_match=field), etag=ETAG, size=9)
    assert (same.status == 200) == (ETAG in members)


@given(st.one_of(tags, st.just("Sat, 01 Jan 2028 00:00:00 GMT"), st.text()))
def test_range_counts_only_if_if_range_is_exactly_the_etag(if_range: str) -> None:
    conditions = Conditions(range="bytes=0-1", if_range=if_range)
    decision = decide("GET", conditions, etag=ETAG, size=9)
    assert decision.status == (206 if if_range.strip(" \t") == ETAG else 200)


@pytest.mark.parametrize(
    ("method", "conditions", "status"),
    [
        ("GET", Conditions(), 200),
        ("HEAD", Conditions(range="bytes=0-1"), 200),
        ("HEAD", Conditions(if_none_match=ETAG), 304),
        ("GET", Conditions(if_none_match="*"), 304),
        ("GET", Conditions(if_none_match=ETAG, range="bytes=0-1"), 304),
        ("GET", Conditions(if_none_match=ETAG[1:-1]), 200),  # unquoted: no entity tag
        ("GET", Conditions(if_match="*", range="bytes=0-1"), 206),
        ("GET", Conditions(if_match='"x"', if_none_match=ETAG), 412),
        ("GET", Conditions(range="bytes=9-"), 416),
        ("GET", Conditions(range="bytes=-0"), 416),
        ("GET", Conditions(range="bytes=5-1"), 200),
    ],
)
def test_conditions_are_taken_in_the_order_of_rfc_9110(
    method: str, conditions: Conditions, status: int
) -> None:
    assert decide(method, conditions, etag=ETAG, size=9).status == status


def test_a_part_names_its_bytes() -> None:
    whole = decide("GET", Conditions(), etag=ETAG, size=100)
    assert whole == Decision(200, 0, 100)
    tail = decide("GET", Conditions(range="bytes=-30"), etag=ETAG, size=100)
    assert tail == Decision(206, 70, 30)
    more = decide("GET", Conditions(range="bytes=90-1000"), etag=ETAG, size=100)
    assert more == Decision(206, 90, 10)


@pytest.mark.parametrize(
    ("field", "decision"),
    [
        ("bytes=90-", Decision(206, 90, 10)),
        ("bytes=99-", Decision(206, 99, 1)),
        ("bytes=100-", Decision(416, 0, 0)),
        ("bytes=0-", Decision(206, 0, 100)),
        ("bytes=0-0", Decision(206, 0, 1)),
        ("bytes=98-98", Decision(206, 98, 1)),
        ("bytes=98-99", Decision(206, 98, 2)),
        ("bytes=98-100", Decision(206, 98, 2)),
        ("bytes=-99", Decision(206, 1, 99)),
        ("bytes=-100", Decision(206, 0, 100)),
        ("bytes=-101", Decision(206, 0, 100)),
        ("bytes=,5-6", Decision(206, 5, 2)),
        ("bytes=5-6,", Decision(206, 5, 2)),
        ("bytes= 5-6", Decision(200, 0, 100)),
        ("bytes=5-6 ,", Decision(206, 5, 2)),
        ("bytes=,", Decision(200, 0, 100)),
        ("bytes=1-2,5-6", Decision(200, 0, 100)),
        ("bytes=0X0-1", Decision(200, 0, 100)),
    ],
)
def test_of_a_hundred_bytes(field: str, decision: Decision) -> None:
    assert decide("GET", Conditions(range=field), etag=ETAG, size=100) == decision


@pytest.mark.parametrize(
    "conditions", [Conditions(if_match='"x"'), Conditions(if_none_match=ETAG)], ids=["412", "304"]
)
def test_an_answer_without_a_body_has_no_part(conditions: Conditions) -> None:
    decision = decide("GET", conditions, etag=ETAG, size=9)
    assert (decision.offset, decision.count) == (0, 0)


@pytest.mark.parametrize("digits", [17, 18, 19, 20, 5000])
def test_numbers_are_read_whole_up_to_the_largest_file_and_none_is_refused_for_its_length(
    digits: int,
) -> None:
    # Larger than int64: no file has so many bytes, so only that the order of such numbers holds matters.
    size = 10**18
    last = "9" * digits
    end = min(int(last), size - 1) if digits < 4000 else size - 1
    assert decide("GET", Conditions(range=f"bytes=1-{last}"), etag=ETAG, size=size) == Decision(
        206, 1, end
    )
    start = int("1" + "0" * (digits - 1)) if digits < 4000 else size
    expected = Decision(206, start, size - start) if start < size else Decision(416)
    assert (
        decide(
            "GET",
            Conditions(range=f"bytes={start if digits < 4000 else last}-"),
            etag=ETAG,
            size=size,
        )
        == expected
    )
    padded = "0" * digits + "7"
    assert decide("GET", Conditions(range=f"bytes={padded}-8"), etag=ETAG, size=9) == Decision(
        206, 7, 2
    )


@pytest.mark.parametrize("digits", [19, 20, 5000])
def test_of_two_numbers_past_any_file_a_shorter_end_makes_the_range_invalid(digits: int) -> None:
    shorter, longer = "9" * digits, "1" + "0" * digits
    field = f"bytes={longer}-{shorter}"
    assert decide("GET", Conditions(range=field), etag=ETAG, size=9).status == 200
    field = f"bytes={shorter}-{longer}"
    assert decide("GET", Conditions(range=field), etag=ETAG, size=9).status == 416
    # A number that is read whole and one that is not.
    field = f"bytes={shorter}-{'9' * 18}"
    assert decide("GET", Conditions(range=field), etag=ETAG, size=9).status == 200
