"""Text to data: what is refused, and that no sentence quotes a value."""

from typing import Any

import pytest

from autowasm.standalone import text
from autowasm.standalone.text import NESTING_MOST, Unreadable


def read(content: str, *, document_bytes: int = 10_000, most: int = 10) -> list[Any]:
    return text.read_documents(content, document_bytes=document_bytes, most=most)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: 1\n---\nb: [x, 1.5, true, null]\n", [{"a": 1}, {"b": ["x", 1.5, True, None]}]),
        ("", []),
        ("a: 2021-10-27T10:00:36Z\nb: 2021-10-27\n", [{"a": "2021-10-27T10:00:36Z", "b": "2021-10-27"}]),
        ('{\n\t"a": "\\ud83d\\ude00"\n}\n', [{"a": "\U0001f600"}]),
        ("\n{a: 1}\n---\n{b: 2}\n", [{"a": 1}, {"b": 2}]),
        ("\ufeffa: 1\n", [{"a": 1}]),
    ],
)  # fmt: skip
def test_reads_documents(content: str, expected: list[Any]) -> None:
    assert read(content) == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: &x [1]\nb: *x\n", r"line 2, column 4: aliases \(\*name\) are not supported"),
        ("a: &x [*x]\n", "aliases"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is there twice"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        ("a:\n  b: !!set {x, y}\n", r"document 1\.a\.b: set is not a type that JSON has"),
        ("a: !!binary aGVsbG8=\n", "bytes is not a type"),
        ("a: !!timestamp 2021-10-27\n", "date is not a type"),
        ("a: [1, .inf]\n", r"document 1\.a\[1\]: must be a finite number"),
        ('{"a": NaN}', "must be a finite number"),
        ("1: x\n", "the key 1 must be text; put it in quotes"),
        ('a: "\\ud800"\n', "half a character"),
        ("? [a]\n: b\n", "line 1"),
        ("a: b: c\n", "line 1, column 5: mapping values are not allowed here"),
        ("a: [1, 2\n", "expected ',' or ']'"),
        ("a: \x00\n", "position 3: special characters"),
        ("a: !!bool maybe\n", "does not fit its tag"),
        ("a: !!int ''\n", "does not fit its tag"),
        ("a: !!timestamp x\n", "does not fit its tag"),
        ('a: "\\UFFFFFFFF"\n', "out of range"),
        (f"a: {'9' * 5000}\n", "out of range"),
        (f'{{"a": {"9" * 5000}}}', "out of range"),
        (f"a: 0x{'f' * 4000}\n", "the integer is larger than 64 bits"),
        (f"a: {2**64}\n", "the integer is larger than 64 bits"),
        ("[" * 5_000, "nested deeper"),
        ("[" * (NESTING_MOST + 2) + "]" * (NESTING_MOST + 2), "nested deeper"),
        ('{"a":' * 100_000, "nested deeper"),
        ("a: 1\n---\n" * 11, "more than 10 documents"),
        (f"a: 1\n---\nb: {'x' * 10_000}\n", "document 2 is larger than 10000 bytes"),
        (f"b: {'ä' * 6_000}\n", "larger than 10000 bytes"),
        (f'{{"b": "{"x" * 10_000}"}}', "larger than 10000 bytes"),
    ],
)  # fmt: skip
def test_refuses_with_a_sentence(content: str, sentence: str) -> None:
    with pytest.raises(Unreadable, match=sentence):
        read(content)


@pytest.mark.parametrize(
    "content",
    [
        "password: s3cret: x\n",
        "password: !s3cret x\n",
        "password: !s3cret!x y\n",
        "password: *s3cret\n",
        "password: &s3cret &s3cret x\n",
        "password: !!bool s3cret\n",
        "password: !!int s3cret\n",
        'password: "s3cret\\q"\n',
        "password: 's3cret\n",
        "password: %s3cret\n",
        "password: @s3cret\n",
        "password: |s3cret\n  x\n",
        '{"password": "s3cret" "x"}',
        '{"password": "s3cret\n"',
    ],
)
def test_says_what_is_wrong_without_quoting_values(content: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read(content)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_sentences_stay_short() -> None:
    for content in (f"{'k' * 5_000}: {{1: 2}}\n", f"? {'k' * 900}\n: 1\n? {'k' * 900}\n: 2\n"):
        with pytest.raises(Unreadable) as caught:
            read(content)
        assert len(str(caught.value)) < 400


def test_nested_as_deeply_as_is_allowed_is_read() -> None:
    assert read("[" * NESTING_MOST + "]" * NESTING_MOST)


def test_trusted_text_may_have_aliases_and_its_timestamps_stay_text() -> None:
    assert text.read_trusted("a: &x {t: 2021-10-27}\nb: *x\n") == {
        "a": {"t": "2021-10-27"},
        "b": {"t": "2021-10-27"},
    }
    with pytest.raises(Unreadable, match="line 1"):
        text.read_trusted("a: b: c\n")
