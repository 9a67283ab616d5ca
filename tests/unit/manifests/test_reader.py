"""A file of manifests to objects: refusals, the place of the error, and that no message quotes a value.

`tests/property/test_kubectl_yaml.py` compares the objects with those of kubectl's own code.
"""

import pytest

from autowasm.manifests import reader
from autowasm.manifests.nodes import MAX_NESTING, Unreadable

HEAD = "kind: X\n"


def read(content: str, *, object_bytes: int = 10_000, file_bytes: int = 80_000) -> reader.Manifests:
    return reader.read(content.encode(), object_bytes=object_bytes, file_bytes=file_bytes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (f"{HEAD}a: [*x]\n", "line 2, column 5: no anchor of this name.*put text that begins with"),
        (f"{HEAD}a: 'b\nc: d\n", "line 2, column 4: found unexpected end of stream; the quote that begins here"),
        (f"{HEAD}a:[1]\nb: c\n", "line 2, column 1: could not find expected ':'; a key needs a colon and a space"),
        (f"{HEAD}a:\n  b: c\n d: e\n", "line 4, column 2: did not find expected key; the indentation differs"),
        (f"{HEAD}a: @b\n", "line 2, column 4: found character that cannot start any token; put a value"),
        (f"{HEAD}{{{{- if .a }}}}\na: b\n", "the file is a template: render it first"),
        (f"{HEAD}a: {{{{ .b }}}}\n", "line 2, column 5: a key must be text.*render the template first"),
        (f"{HEAD}a:\u00a0b\nc: d\n", r"line 2, column 1: .*replace the invisible character U\+00A0"),
        (f"{HEAD}a:\n\u00a0\u00a0b:\n    c: d\n  e: f\n", r"invisible character U\+00A0 in line 3 with a space"),
        ("kind: X\na: b\n---\nkind: X\n\u00a0b: 1\nc: 1\nd: 1\n e: f\n g\n", r"line 8.*U\+00A0 in line 5"),
        (f"{HEAD}a: &x [*x]\n", "line 2, column 8: the alias is inside the value of its anchor"),
        (f"{HEAD}a: {{1: x, '1': y}}\n", "line 2, column 11: duplicate key '1', with and without quotes"),
        (f"{HEAD}a:\n- x\n- <<: 1\n", "line 4, column 7: << needs a mapping"),
        (f"{HEAD}a: {{<<: [{{b: 1}}, [{{c: 1}}]]}}\n", "line 2, column 18: << needs a mapping, or a list of mappings"),
        (f"{HEAD}a: [1, .inf]\n", "line 2, column 8: the value must be a finite number"),
        (f"{HEAD}~: x\n", "line 2, column 1: key: null cannot be a key"),
        (f'{HEAD}a: "\\ud800"\n', "line 2, column 7: found invalid Unicode character"),
        (f"{HEAD}? [a]\n: b\n", "line 2, column 3: a key must be text"),
        ("a: b: c\n", "line 1, column 5: mapping values are not allowed"),
        ("a: [1, 2\n", "line 2, column 1: did not find expected ',' or ']'"),
        (f"{HEAD}---\n{HEAD}b: \x07\n", "line 4: control characters"),
        (f"{HEAD}a: !!bool maybe\n", "line 2, column 4: the value does not fit its tag !!bool"),
        (f"{HEAD}a: !!int ''\n", "does not fit its tag !!int"),
        (f"{HEAD}a: !!timestamp 2021-13-40\n", "does not fit its tag !!timestamp"),
        (f"{HEAD}---\nkind: Y\na:\n\tb: 1\n", "line 5, column 1: a tab cannot indent a line"),
        (f"{HEAD}--- {{kind: Y}}\n", "line 2: only a comment may follow ---"),
        ('{"kind": "X"}{"kind": "Y"}\n{"kind"', "line 2, column 1: not valid JSON"),
        ('{"kind": "X", "a": 1e999}', "a number is out of range"),
        (f'{{"kind": "X", "a": {"9" * 5000}}}', "out of range"),
        ("[" * 5_000, "nest"),
        (f"{HEAD}a: " + "[" * (MAX_NESTING + 2) + "]" * (MAX_NESTING + 2), "nested deeper"),
        (f"{HEAD}a: " + "- " * 5_000, "line 2"),
        ('{"a":' * 10_000, "nested deeper"),
        (f"{HEAD}---\n" * 1_001, "more than 1000 documents"),
        (f"{HEAD}---\nkind: {'x' * 10_000}\n", r"document 2 \(line 3\) is larger than 10000 bytes"),
        (f"{HEAD}b: {'ä' * 6_000}\n", "larger than 10000 bytes"),
        (f'{{"kind": "{"x" * 10_000}"}}', "larger than 10000 bytes"),
        ("x" * 80_001, "larger than 80000 bytes"),
        ("- a\n", r"document 1 \(line 1\) is not an object"),
        ("kind: List\nitems:\n- kind: X\n- 1\n", r"document 1 \(line 1\), items\[1\] is not an object"),
        ("kind: List\nitems: {}\n", "items is not a list"),
        ("kind: List\nitems: [{apiVersion: v1}]\n", r"items\[0\]: kind is missing"),
        (f"{HEAD}b: 1\n\ufeffc: 1\n", "line 3: a byte order mark is allowed only at the beginning of a document"),
        ('{"kind": "X", "a": ' + "[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1) + "}", "nested deeper"),
        (f"{HEAD}a: &x {'[' * 60}{']' * 60}\nb: {'[' * 60}*x{']' * 60}\n", "line 2.*nested deeper"),
        (f"{HEAD}x0: &x0 {{}}\n" + "".join(f"x{n + 1}: &x{n + 1} {{<<: *x{n}}}\n" for n in range(MAX_NESTING + 2)), "nested deeper"),
        ("kind: List\nitems: [{kind: List, items: []}]\n", r"items\[0\] is a List within a List"),
    ],
)  # fmt: skip
def test_refuses_with_a_sentence_that_says_where(content: str, sentence: str) -> None:
    with pytest.raises(Unreadable, match=sentence):
        read(content)


def test_invalid_utf_8_is_refused_with_its_line() -> None:
    with pytest.raises(Unreadable, match="line 2: byte 11 is not UTF-8; save the file as UTF-8"):
        reader.read(b"kind: X\na: \xff\n", object_bytes=100, file_bytes=100)


@pytest.mark.parametrize(
    "content",
    [
        "password: s3cret: x\n",
        "password: !s3cret!x y\n",
        "password: *s3cret\n",
        "password: &s3cret &s3cret x\n",
        "password: !!bool s3cret\n",
        "password: !!int s3cret\n",
        "password: !!binary s3cret!\n",
        'password: "s3cret\\q"\n',
        "password: 's3cret\n",
        "password: %s3cret\n",
        "password: @s3cret\n",
        "password: |s3cret\n  x\n",
        "password: {<<: s3cret}\n",
        '{"kind": "X"}{"kind": "X"}{"password": "s3cret" "x"}',
        '{"kind": "X"}{"kind": "X"}{"password": "s3cret\n"',
    ],
)
def test_error_message_quotes_no_value(content: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read(content if content.startswith("{") else HEAD + content)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("content", "remark"),
    [
        ("kind: X\na: 1\na: 2\n", "line 3, column 1: duplicate key 'a'; the last value is used"),
        ('{"kind": "X", "a": {"b": 1, "b": 2}}', "duplicate key 'b'; the last value is used"),
        ("---\nkind: X\n...\nkind: Y\n", "text after its end is ignored"),
    ],
)
def test_reader_remarks_on_input_that_kubectl_accepts_silently(content: str, remark: str) -> None:
    found = read(content)
    assert len(found.objects) == 1
    assert [remark in each for each in found.remarks] == [True]


def test_sentences_stay_short() -> None:
    found = read(f"{HEAD}? {'k' * 900}\n: 1\n? {'k' * 900}\n: 2\n")
    assert all(len(each) < 400 for each in found.remarks)


def test_nested_as_deeply_as_is_allowed_is_read() -> None:
    most = MAX_NESTING - 1
    assert read(f"{HEAD}a: " + "[" * most + "]" * most).objects


def test_objects_know_where_they_stand() -> None:
    found = read(
        "# a\nkind: X\n---\n\n\nkind: List\nitems:\n- kind: V\n- kind: Z\n---\n{kind: W}\n"
    )
    assert [(each.value["kind"], each.where) for each in found.objects] == [
        ("X", "document 1 (line 2)"),
        ("V", "document 2 (line 6), items[0]"),
        ("Z", "document 2 (line 6), items[1]"),
        ("W", "document 3 (line 11)"),
    ]


def test_a_value_alone_is_read_with_the_same_types() -> None:
    """istiod reads the mesh's configuration with kubectl's library."""
    text = b"enableAutoMtls: y\nport: 0o17\nname:\t22:22\n"
    value = reader.read_value(text, file_bytes=1_000)
    assert value == {"enableAutoMtls": True, "port": 15, "name": "22:22"}
    assert reader.read_value(b"", file_bytes=1_000) is None
    with pytest.raises(Unreadable, match="larger than 3 bytes"):
        reader.read_value(b"a: 1", file_bytes=3)


def test_items_of_a_list_of_one_kind_take_its_kind_and_version() -> None:
    text = "kind: AutoWasmList\napiVersion: wasm.tcm.io/v1alpha1\nitems: [{metadata: {name: a}}]\n"
    (found,) = read(text).objects
    assert found.value == {
        "metadata": {"name": "a"},
        "kind": "AutoWasm",
        "apiVersion": "wasm.tcm.io/v1alpha1",
    }


def test_yaml_may_follow_json_in_a_file() -> None:
    found = read('{"kind": "X"}   \n  \nkind: Z\n')
    assert [one.value for one in found.objects] == [{"kind": "X"}, {"kind": "Z"}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("!!timestamp 2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("!!timestamp 0000-02-29", "0000-02-29"),
        ("!!binary /w==", "\ufffd"),
        ("!!binary YWL/Yg==", "ab\ufffdb"),
        ("9" * 400, "9" * 400),
        ("!!float 18446744073709551615", None),
    ],
)
def test_values_with_tags_and_of_many_digits_are_those_of_go(text: str, value: object) -> None:
    if value is None:
        with pytest.raises(Unreadable, match="does not fit its tag !!float"):
            read(f"{HEAD}a: {text}\n")
        return
    (found,) = read(f"{HEAD}a: {text}\n").objects
    assert found.value["a"] == value


def test_json_with_words_that_json_does_not_have_is_read_as_yaml() -> None:
    (found,) = read('{"kind": "X", "a": [NaN, Infinity]}').objects
    assert found.value["a"] == ["NaN", "Infinity"]
