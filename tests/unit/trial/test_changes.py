"""Which headers a filter added, changed and removed."""

import pytest

from autowasm.trial.differences import Change, Header, compared

A, B, C = ("a", "1"), ("b", "2"), ("c", "3")


@pytest.mark.parametrize(
    ("before", "after", "marks"),
    [
        ([A, B], [A, B], "  "),
        ([A], [A, B], " +"),
        ([A, B], [B], " -"),
        ([A], [("a", "2")], "~"),
        ([], [A], "+"),
        ([A, B], [B, A], "  "),
        ([A], [A, A], " +"),
        ([A, A], [A], " -"),
        ([("a", "1"), ("a", "2")], [("a", "2"), ("a", "3")], " ~"),
    ],
    ids=str,
)
def test_headers_are_marked(
    before: list[tuple[str, str]], after: list[tuple[str, str]], marks: str
) -> None:
    shown = {Change.SAME: " ", Change.ADDED: "+", Change.CHANGED: "~", Change.REMOVED: "-"}
    assert "".join(shown[each.change] for each in compared(before, after)) == marks


def test_changed_header_has_its_old_value_and_a_removed_one_is_last() -> None:
    assert compared([A, C, B], [("b", "4"), A]) == (
        Header("b", "4", Change.CHANGED, "2"),
        Header("a", "1"),
        Header("c", "3", Change.REMOVED),
    )


def test_nothing_is_a_change_without_another_message() -> None:
    assert compared(None, [A]) == (Header("a", "1"),)


def test_later_date_is_no_change_and_a_missing_one_is() -> None:
    dated = [("date", "Thu, 01 Jan 2026 00:00:00 GMT")]
    later = compared(dated, [("date", "Thu, 01 Jan 2026 00:00:01 GMT")])
    assert [each.change for each in later] == [Change.SAME]
    assert [each.change for each in compared(dated, [])] == [Change.REMOVED]
