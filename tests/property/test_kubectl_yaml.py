"""manifests.reader over generated YAML and JSON: the objects that kubectl's own code reads, or a refusal where it refuses."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autowasm.manifests import reader
from autowasm.manifests.nodes import Unreadable
from tests.parts.kubectlyaml import Kubectl, kubectl

shared = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
STRICTER = (
    "found unexpected ':'",
    "did not find expected whitespace or line break",
    "did not find expected tag URI",
    "byte order mark",
    "a comma directly after a tag",
)
"""go-yaml takes `[a:]` for the text `a:`, `!]` and `!!]` for nothing, `!,` for a tag, and U+FEFF at the beginning of a line for a part of the key."""
HEAD = "apiVersion: v1\nkind: Thing\n"

WORDS = [
    "y",
    "Y",
    "yes",
    "Yes",
    "YES",
    "n",
    "N",
    "no",
    "No",
    "NO",
    "true",
    "True",
    "TRUE",
    "false",
    "False",
    "FALSE",
    "on",
    "On",
    "ON",
    "off",
    "Off",
    "OFF",
    "tRUE",
    "yEs",
    "~",
    "null",
    "Null",
    "NULL",
    "nULL",
    ".nan",
    ".NaN",
    ".NAN",
    ".inf",
    ".Inf",
    ".INF",
    "-.inf",
    "+.inf",
    ".iNF",
    "=",
    "<<",
    "nan",
    "inf",
    "1e3",
    "1E3",
    "1e+3",
    "1e-3",
    "1.e3",
    "1e",
    "1e+",
    ".5",
    "5.",
    ".5e3",
    ".5_0",
    "._5",
    ".5_",
    "1_000",
    "1__0",
    "_1",
    "1_",
    "-1",
    "+1",
    "-",
    "+",
    "-_1",
    "0",
    "00",
    "-0",
    "+0",
    "-0.0",
    "0.0",
    "1.0",
    "10.50",
    "017",
    "08",
    "0o17",
    "0O17",
    "0o8",
    "0x1F",
    "0X1F",
    "0xg",
    "0x",
    "0b11",
    "0B11",
    "-0b11",
    "0b2",
    "0b",
    "0x_1",
    "22:22",
    "1:2:3",
    "190:20:30.15",
    "1.10",
    "1.2.3",
    "2001-12-14",
    "2001-12-14T21:59:43.10-05:00",
    "2001-1-1",
    "2001-13-99",
    "1e999",
    "-1e999",
    "1e21",
    "1e20",
    "1e-7",
    "1e-6",
    "0.1",
    "123456789.125",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "+18446744073709551615",
    "0xffffffffffffffff",
    "0xfffffffffffffffff",
    "01777777777777777777777",
    "07777777777777777777777777",
    "5e-324",
    "123456789012345678901234567890",
    "1.7976931348623157e308",
    "a",
    "#a",
    "a#b",
    '"a"',
    "'a'",
    '"y"',
    "'22:22'",
    '""',
    "''",
    '"\\u0041"',
    '"\\ud800"',
    '"\\x41"',
    "'a''b'",
    '"a\\tb"',
]
TAGS = st.sampled_from(
    ["", "", "", "!!str ", "!!int ", "!!float ", "!!bool ", "!!null ", "!!timestamp ", "!!binary ", "! ", "!own "]
)  # fmt: skip
NUMERALS = st.text(alphabet="0123456789abfexobEX_.+-:", min_size=1, max_size=12)
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    NUMERALS,
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "")),
)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Kubectl]:
    with kubectl() as running:
        yield running


def ours(data: bytes) -> tuple[list[str] | None, str]:
    """The objects as text (True equals 1 in Python, and 1.0 equals 1), or None and why not."""
    try:
        found = reader.read(data, object_bytes=10**6, file_bytes=10**7)
    except Unreadable as error:
        return None, str(error)
    return [json.dumps(each.value, sort_keys=True) for each in found.objects], ""


def compare(oracle: Kubectl, content: str) -> None:
    data = content.encode("utf-8", "replace")
    said = oracle.read(data)
    found, refusal = ours(data)
    if found is None:
        refused_here_only = any(each in refusal for each in STRICTER)
        assert said.error or refused_here_only, f"kubectl reads {said.objects}, we say: {refusal}"
    else:
        assert not said.error, f"kubectl says: {said.error}, we read {found}"
        assert found == [json.dumps(each, sort_keys=True) for each in said.objects]


@shared
@given(TAGS, SCALARS)
@example("", ".5_0")
@example("! ", "y")
@example("!", ",")
@example("!!str", ",")
@example("&a !b", ", c")
@example("!<a,b> ", "x")
@example("!!float ", "18446744073709551615")
def test_a_scalar_is_read_as_kubectl_reads_it(oracle: Kubectl, tag: str, scalar: str) -> None:
    for around in ("value: {}\n", "value:\n- {}\n- [{}]\n", "value: {{a: {}}}\n"):
        compare(oracle, HEAD + around.format(*[tag + scalar] * around.count("{}")))


@shared
@given(TAGS, SCALARS)
@example("", "8080")
@example("", "true")
@example("", "1e6")
@example("", "16777217.0")
@example("", "~")
def test_a_key_is_read_as_kubectl_reads_it(oracle: Kubectl, tag: str, scalar: str) -> None:
    compare(oracle, f"{HEAD}value:\n  {tag}{scalar}: 1\n")
    compare(oracle, f"{HEAD}value: {{? {tag}{scalar} : 1}}\n")


@shared
@given(st.floats(width=32) | st.floats())
def test_a_float_key_has_the_digits_of_a_float32(oracle: Kubectl, value: float) -> None:
    text = repr(value).replace("nan", ".nan").replace("inf", ".inf")
    compare(oracle, f"{HEAD}value: {{? {text} : 1}}\n")


@pytest.mark.parametrize("word", WORDS)
def test_every_odd_word(oracle: Kubectl, word: str) -> None:
    compare(oracle, f"{HEAD}value: {word}\n")
    compare(oracle, f"{HEAD}value: {{? {word} : [{word}]}}\n")
    compare(oracle, f'{{"kind": "Thing", "value": {word}}}')


NAMES = st.sampled_from(["a", "b", "c", "1", "y", '"1"', "<<"])
NODES = st.deferred(lambda: LEAVES | LISTS | MAPS)
LEAVES = st.sampled_from(["1", "x", "~", "*a", "*b", "*c", "&a 1", "&b x", "<<"])
ANCHORS = st.sampled_from(["", "", "&a ", "&b ", "&c ", "!!set ", "!own "])
LISTS = st.builds(
    lambda anchor, items: f"{anchor}[{', '.join(items)}]", ANCHORS, st.lists(NODES, max_size=3)
)
MAPS = st.builds(
    lambda anchor, pairs: f"{anchor}{{{', '.join(f'{key}: {value}' for key, value in pairs)}}}",
    ANCHORS,
    st.lists(st.tuples(NAMES, NODES), max_size=4),
)


@shared
@given(st.lists(NODES, min_size=1, max_size=4))
@example(["&a {b: 1, c: 2}", "{b: 0, <<: *a, c: 3}"])
@example(["&a {b: 1}", "&b {b: 2, c: 2}", "{<<: [*a, *b]}"])
@example(["&a [*a]"])
@example(["&a {<<: *a}"])
def test_aliases_and_merge_keys_are_read_as_kubectl_reads_them(
    oracle: Kubectl, values: list[str]
) -> None:
    content = HEAD + "".join(f"value{number}: {each}\n" for number, each in enumerate(values))
    # Two keys of Go's map that are one in JSON: which of them kubectl sends differs from run to run.
    if "with and without quotes" not in ours(content.encode())[1]:
        compare(oracle, content)


LINES = st.sampled_from(
    ["---", "--- ", "--- # c", "---\t", "--- x", "----", "...", "... # c", "", " ", "# c", "%YAML 1.1", "kind: A", "kind: B",
     "value: 1", "value:\t1", "value: 1\t", "value: 1\t# c", "\tvalue: 1", "  a: 1", "- a", "value: |", "  x", "  y\t", "value: >-",
     "value: |+", "value: 'a", "  b'", '{"kind": "A"}', '{"kind": "B"}{"kind": "C"}', "{kind: A}", '{"kind": "A", "kind": "B"}',
     '{"kind": "A", "value": NaN}', '{"kind": "A", "value": 1.0}', '{"kind": "A", "value": "\\ud800\\u0041"}', "\ufeffkind: A",
     "kind: List", "items:", "- kind: A", "  value: y", "kind: AList", "items: []", "items: ~", "value: a\u2028b", "value: a\x85b",
     "value: \x07", "value: [", "a, b]", "? value", ": 1", "value: a: b", "value: @a", "value: `a`", "value: %a", "value: - a"]
)  # fmt: skip
ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", ""])


@shared
@given(st.lists(st.tuples(LINES, ENDS), max_size=8))
@example([("kind: A", "\n"), ("---", "\n"), ("kind: B", "")])
@example([("kind: A", "\n"), ("...", "\n"), ("kind: B", "\n")])
@example([('{"kind": "A"}', "\n"), ("---", "\n"), ("kind: B", "\n")])
@example([("kind: A", "\n"), ("value: |+", "\n"), ("  x", "\n"), ("", "\n")])
def test_documents_are_cut_where_kubectl_cuts_them(
    oracle: Kubectl, lines: list[tuple[str, str]]
) -> None:
    compare(oracle, "".join(line + end for line, end in lines))


@shared
@given(st.text(alphabet="akind:A \n\t-[]{},?:&*!|>'\"#%@`0\r~<.", max_size=40))
@example("!!]")
@example("!]")
def test_any_text_is_read_as_kubectl_reads_it_or_refused(oracle: Kubectl, text: str) -> None:
    compare(oracle, f"kind: A\nvalue: {text}")
    compare(oracle, f"kind: A\n{text}")
    compare(oracle, text)


PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)


@shared
@given(PLAIN)
def test_json_and_dumped_yaml_are_read_as_kubectl_reads_them(oracle: Kubectl, value: Any) -> None:
    document = {"kind": "A", "value": value}
    compare(oracle, json.dumps(document))
    compare(oracle, json.dumps(document, indent="\t"))
    compare(oracle, json.dumps([document])[1:-1] + json.dumps(document))
    compare(oracle, yaml.safe_dump(document, allow_unicode=True))
    compare(oracle, yaml.safe_dump({"kind": "List", "items": [document, document]}))
