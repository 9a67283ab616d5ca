"""documents.parse() over every beginning of a valid file, as a reader sees it during a write."""

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autowasm.limits import Limits
from autowasm.manifests import writer
from autowasm.standalone import documents
from tests.fakes import autowasms

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,4}(-[a-z0-9]{1,3})?", fullmatch=True)


def parse(content: str) -> documents.Parsed:
    return documents.parse(content.encode(), limits=Limits())


def two(first: str, second: str) -> list[dict[str, Any]]:
    return [
        autowasms.document(name=first, applyPorts=[9080]),
        autowasms.document(name=second, pluginConfig={"a": ["b", 1, True, None]}),
    ]


@given(NAMES, NAMES, st.data())
def test_beginning_of_two_documents_is_broken_or_ends_in_a_document(
    first: str, second: str, data: st.DataObject
) -> None:
    made = two(first, second)
    texts = [writer.dump(each) for each in made]
    whole = "---\n".join(texts)
    length = data.draw(st.integers(0, len(whole)))
    parsed = parse(whole[:length])
    if parsed.broken:
        assert parsed.problems
        return
    found = [document for _, document in parsed.autowasms]
    # The documents before the last are whole; the last is the beginning of one, with its own name and kind.
    assert found[:-1] == made[: len(found) - 1]
    assert {"apiVersion", "kind", "metadata"} <= set(found[-1])
    assert (len(found) == 2) <= (length > len(texts[0]))


def test_every_beginning_is_broken_or_a_document() -> None:
    made = two("first", "second")
    texts = [writer.dump(each) for each in made]
    whole = "---\n".join(texts)
    for length in range(len(whole)):
        parsed = parse(whole[:length])
        if length >= len(texts[0]) and not parsed.broken:
            assert parsed.autowasms[0][1] == made[0]
        assert parsed.broken or parsed.autowasms
    assert [document for _, document in parse(whole).autowasms] == made


def test_every_beginning_of_json_is_broken() -> None:
    whole = json.dumps(two("first", "second")[0])
    assert all(parse(whole[:length]).broken for length in range(len(whole)))
    assert not parse(whole).broken


def test_every_beginning_of_flow_style_is_broken_or_whole() -> None:
    made = two("first", "second")
    texts = [json.dumps(each) for each in made]
    whole = "\n---\n".join(texts)
    ends = list(itertools.accumulate(len(each) for each in (texts[0], "\n---\n" + texts[1])))
    for length in range(len(whole) + 1):
        parsed = parse(whole[:length])
        complete = [each for each, end in zip(made, ends, strict=True) if length >= end]
        if not parsed.broken:
            assert [document for _, document in parsed.autowasms] == complete
