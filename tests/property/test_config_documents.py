"""documents.parse() over any text: documents with safe names, or problems, and never an exception."""

import copy
import json
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autowasm.limits import Limits
from autowasm.standalone import documents, files, text

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
    parsed = documents.parse(content, limits=LIMITS)
    assert parsed.broken <= bool(parsed.problems)
    for key, document in parsed.autowasms:
        name = f"{key.namespace}.{key.name}"
        assert "/" not in name
        assert name.partition(".") == (key.namespace, ".", key.name)
        assert len(f".{name}.yaml.01234567") <= 255
        assert copy.deepcopy(document) == document
        assert text.read_trusted(files.dump_yaml(document).decode()) == document


@no_deadline
@given(st.dictionaries(st.text(max_size=10), JSON, min_size=1, max_size=4))
def test_what_json_can_say_survives_writing_and_reading(document: dict[str, Any]) -> None:
    written = files.dump_yaml(document)
    assert files.dump_yaml(copy.deepcopy(document)) == written
    assert text.read_trusted(written.decode()) == document
    for content in (
        written.decode(),
        json.dumps(document, indent="\t"),
        json.dumps(document, ensure_ascii=False),
    ):
        assert text.read_documents(content, document_bytes=100_000, most=1) == [document]


@no_deadline
@given(st.text(alphabet="abcdefg0123456789", min_size=6, max_size=12), TEXTS, TEXTS)
def test_no_problem_quotes_what_stands_under_a_key(value: str, before: str, after: str) -> None:
    value = f"qz{value}zq"
    content = f"apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\nstringData:\n  p: {before[:20]}{value}{after[:20]}\n"
    parsed = documents.parse(content, limits=LIMITS)
    # Names, kinds and keys are shown; `before` and `after` can make the value a part of one.
    shown = ("metadata.", "kind", "reads AutoWasm", "the key", ".p")
    problems = [each for each in parsed.problems if not any(word in each for word in shown)]
    assert not any(value in each for each in problems)
    assert value not in repr(parsed.secrets)


@no_deadline
@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=3), max_size=6))
def test_a_key_twice_is_always_found(keys: list[str]) -> None:
    mapping = "".join(f"  {key}: 1\n" for key in keys) or "  {}\n"
    as_json = "{" + ", ".join(f'"{key}": 1' for key in keys) + "}"
    for content in (f"a:\n{mapping}", f'{{"a": {as_json}}}'):
        try:
            read = text.read_documents(content, document_bytes=1_000, most=1)
        except text.Unreadable:
            assert len(set(keys)) < len(keys)
        else:
            assert len(set(keys)) == len(keys)
            assert read == [{"a": dict.fromkeys(keys, 1)}] == [yaml.safe_load(content)]
