"""documents.parse() over any text: documents with safe names, or problems, and never an exception."""

import copy
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from autowasm.limits import Limits
from autowasm.manifests import reader, writer
from autowasm.manifests.nodes import Unreadable
from autowasm.standalone import documents

LIMITS = Limits(spec_bytes=20_000)
no_deadline = settings(deadline=None)
FRAGMENTS = st.sampled_from(
    [
        "apiVersion: wasm.tcm.io/v1alpha1\n", "apiVersion: v1\n", "kind: AutoWasm\n", "kind: Secret\n", "metadata:\n",
        "  name: ", "  namespace: ", "a", "../a", "data:\n", "stringData:\n", "spec: ", "---\n", "...\n", "\n", " ", "  ",
        "- ", ": ", "? ", "{", "}", "[", "]", ",", "&x ", "*x", "<<: ", "!!bool ", "!!int ", "!!float ", "!!timestamp ",
        "!!set ", "!!binary ", "!!omap ", "!!pairs ", "!!merge ", "!!value ", "!!python/object:os.system ", "!x ", "!<y> ",
        "%YAML 1.1\n", "%TAG ! x\n", "'", '"', "\\", "\\U", "\\x", "FFFFFFFF", "\\ud800", "|\n", ">-\n", "#", "\t", "\x00",
        "\x85", "\u2028", "\ufeff", "1:2:3", "0x", "0b", "1e999", ".nan", "=", "~", "@", "`", "2021-13-99",
    ]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=200), st.lists(FRAGMENTS, max_size=25).map("".join))
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(min_value=-(2**63), max_value=2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)


@no_deadline
@given(TEXTS)
@example("a: !!bool foo")
@example("a: !!int ''")
@example("a: !!float ''")
@example("a: !!timestamp x")
@example('a: "\\UFFFFFFFF"')
@example("[" * 15_000)
@example("- " * 9_000)
@example('{"a":' * 3_000)
def test_any_text_gives_documents_or_problems(content: str) -> None:
    parsed = documents.parse(content.encode(), limits=LIMITS)
    assert parsed.broken <= bool(parsed.problems)
    for key, document in parsed.autowasms:
        name = f"{key.namespace}.{key.name}"
        assert "/" not in name
        assert name.partition(".") == (key.namespace, ".", key.name)
        assert len(f".{name}.yaml.01234567") <= 255
        assert copy.deepcopy(document) == document
        assert writer.read_back(writer.dump(document)) == document


@no_deadline
@given(st.dictionaries(st.text(max_size=10), JSON, min_size=1, max_size=4))
def test_every_json_document_survives_writing_and_reading(document: dict[str, Any]) -> None:
    written = writer.dump(document)
    assert writer.dump(copy.deepcopy(document)) == written
    assert writer.read_back(written) == document


@no_deadline
@given(st.text(alphabet="abcdefg0123456789", min_size=6, max_size=12), TEXTS, TEXTS)
def test_no_problem_quotes_the_value_of_a_key(value: str, before: str, after: str) -> None:
    value = f"qz{value}zq"
    content = f"apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\nstringData:\n  p: {before[:20]}{value}{after[:20]}\n"
    parsed = documents.parse(content.encode(), limits=LIMITS)
    # Names, kinds and keys are shown; `before` and `after` can make the value a part of one.
    shown = ("metadata.", "kind", "reads AutoWasm", "the key", ".p")
    problems = [each for each in parsed.problems if not any(word in each for word in shown)]
    assert not any(value in each for each in problems)
    assert value not in repr(parsed.secrets)


@no_deadline
@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=3), max_size=6))
def test_a_duplicate_key_is_always_reported_and_the_last_value_counts(keys: list[str]) -> None:
    mapping = "".join(f"  {key}: {number}\n" for number, key in enumerate(keys)) or "  {}\n"
    as_json = "{" + ", ".join(f'"{key}": {number}' for number, key in enumerate(keys)) + "}"
    for content in (f"kind: X\na:\n{mapping}", f'{{"kind": "X", "a": {as_json}}}'):
        found = reader.read(content.encode(), object_bytes=1_000, file_bytes=1_000)
        assert len(found.remarks) == len(keys) - len(set(keys))
        assert [each.value["a"] for each in found.objects] == [
            {key: number for number, key in enumerate(keys)}
        ]


@no_deadline
@given(st.integers(2, 12), st.integers(1, 12), st.booleans())
def test_expansion_of_aliases_is_bounded_like_the_file(depth: int, width: int, merge: bool) -> None:
    """The billion laughs: refused, or no larger than a file may be."""
    lines = ["a0: &a0 {x: 0123456789}"]
    for level in range(1, depth):
        names = [f"*a{level - 1}"] * width
        value = f"{{<<: [{', '.join(names)}]}}" if merge else f"[{', '.join(names)}]"
        lines.append(f"a{level}: &a{level} {value}")
    content = "kind: X\n" + "\n".join(lines)
    limit = 20_000
    as_tree = sum(width**level for level in range(depth)) * (1 if merge else 10)
    try:
        found = reader.read(content.encode(), object_bytes=limit, file_bytes=limit)
    except Unreadable as error:
        refusal = str(error)
    else:
        refusal = ""
        assert len(json.dumps(found.objects[0].value)) <= limit
    assert ("larger than" in refusal) == bool(refusal)
    assert refusal or as_tree < limit
