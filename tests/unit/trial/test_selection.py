"""Which cases `-k` selects."""

import pytest

from autowasm.trial.selection import parse

NAMES = ("Header is added", "header is removed", "config refused", "a, b")


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("", "0123"),
        ("header", "01"),
        ("HEADER and added", "0"),
        ("added or refused", "02"),
        ("not header", "23"),
        ("header and not (added or refused)", "1"),
        ("not not header", "01"),
        ("added or header and removed", "01"),
        ('"is added" or "a, b"', "03"),
        ("'config refused'", "2"),
        ("nothing", ""),
    ],
)
def test_expression_selects_names(expression: str, selected: str) -> None:
    selects = parse(expression)
    assert "".join(str(at) for at, name in enumerate(NAMES) if selects(name)) == selected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("and", "a word is missing before 'and'"),
        ("a and", "a word is missing before the end"),
        ("(a", "a parenthesis is not closed"),
        ("a)", r"unexpected '\)'"),
        ("a b", "unexpected 'b'"),
        ("'a", "a quote is not closed"),
        ("a" * 2000, "longer than"),
    ],
)
def test_wrong_expression_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(expression)
