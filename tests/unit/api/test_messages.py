"""The messages for every mistake in every field, as text that was reviewed (`messages.txt`), and what they promise."""

import json
from pathlib import Path

import pytest

from autowasm.api import validation
from autowasm.api.validation import AUTOWASM
from autowasm.errors import SpecError
from tests.fakes.autowasms import document
from tests.unit.api import messagetable

REVIEWED = Path(__file__).with_name("messages.txt")
PYTHON = ("expected `", "NoneType", "dict", "<class", "object missing", "of length")


def test_every_mistake_has_the_message_that_was_reviewed() -> None:
    assert messagetable.text() == REVIEWED.read_text()


def test_every_field_has_values_out_of_range_or_takes_any() -> None:
    fields = set(messagetable.fields())
    assert fields == set(messagetable.VALUES) | messagetable.FREE | {"spec.filter.source.object"}


def test_every_path_of_the_vocabulary_exists() -> None:
    for path in (*AUTOWASM.expected, *AUTOWASM.meant.values(), *AUTOWASM.formats):
        assert path in validation.FIELDS, path
    for path in (*AUTOWASM.meant, *AUTOWASM.unsupported):
        assert path not in validation.FIELDS, path


@pytest.mark.parametrize(
    "row", list(messagetable.rows()), ids=lambda row: f"{row.field}-{row.mistake}"
)
def test_a_message_has_a_place_and_no_word_of_python(row: messagetable.Row) -> None:
    for message in messagetable.messages(row.document):
        assert not any(word in message for word in PYTHON)
        assert message.partition(": ")[2]


def test_all_errors_of_a_file_are_reported_at_once() -> None:
    wrong = document(applyPorts=["9080", 0], rootId="x", failStrategy="OPEN", env=[{"name": ""}])
    with pytest.raises(SpecError) as caught:
        validation.parse(wrong)
    assert [part.field for part in caught.value.parts] == [
        "spec.filter.applyPorts[0]",
        "spec.filter.rootId",
        "spec.filter.failStrategy",
        "spec.filter.applyPorts[1]",
        "spec.filter.env[0].name",
    ]
    for part in caught.value.parts:
        assert str(part) in str(caught.value)


def test_a_message_of_many_errors_is_bounded_and_tells_their_number() -> None:
    wrong = document(env=[{"name": f"n{n}", "value": n} for n in range(200)])
    with pytest.raises(SpecError) as caught:
        validation.parse(wrong)
    assert str(caught.value).endswith("; and 10 more errors")
    assert len(str(caught.value)) < 2000


def test_no_message_has_the_query_or_the_user_of_a_url() -> None:
    url = "https://me:word@objects.example/a.wasm?X-Signature=secret"
    for spec in (
        {"filter": url},
        {"filter": {"source": url}},
        {"filter": {"source": {"object": url}}},
        {"filter": {"source": {"object": {"url": [url]}}}},
        {"filter": {"source": {"object": {"url": url}}, "applyPorts": url, "failStrategy": url}},
        {"url": url},
    ):
        with pytest.raises(SpecError) as caught:
            validation.parse(document(spec=spec))
        assert "word" not in str(caught.value).replace("password", "")
        assert "secret" not in str(caught.value)


def test_no_message_has_a_password_that_was_written_into_the_spec() -> None:
    for fields in (
        {"env": ["TOKEN=word"]},
        {"env": "TOKEN=word"},
        {"env": {"TOKEN": "word"}},
        {"env": [{"name": "TOKEN=word"}]},
        {"source": {"registry": {"image": "https://me:word@a.io/b"}}},
        {"source": {"registry": {"image": "me:word@a.io/b"}}},
        {"source": {"registry": {"image": "a.io/b?key=word"}}},
    ):
        told = messagetable.messages(document(**fields))
        assert told
        assert not any("word" in each.replace("password", "") for each in told), told
    spec = {**document()["spec"], "secret": "me:word"}
    assert "word" not in "".join(messagetable.messages(document(spec=spec)))


def test_a_misplaced_value_is_checked_where_it_is() -> None:
    with pytest.raises(SpecError) as caught:
        validation.parse(document(spec={"applyPorts": [0]}))
    assert [str(part) for part in caught.value.parts] == [
        "spec.applyPorts: is at the wrong level; move it to spec.filter.applyPorts",
        "spec.applyPorts[0]: must be from 1 to 65535, not 0",
    ]


def test_a_field_beside_the_spec_is_refused_only_if_it_is_one_of_the_spec() -> None:
    validation.parse({**document(), "data": {}, "items": [], "name": "x"})
    with pytest.raises(SpecError, match=r"move it to spec\.filter\.applyPorts"):
        validation.parse({**document(), "applyPorts": [1]})


def test_a_huge_object_of_mistakes_takes_few_comparisons() -> None:
    """The work is bounded: this would take minutes if every name were compared."""
    many = {f"field{n}": n for n in range(50_000)}
    with pytest.raises(SpecError) as caught:
        validation.parse(document(spec={**many, "selector": {"matchLabels": many}}))
    assert len(caught.value.parts) <= 40
    assert len(json.dumps(str(caught.value))) < 10_000


@pytest.mark.parametrize(
    "name", ["", "-", " ", "_", "a.b", "[]", "[*]", "x" * 5000, "\x1b[31m", "é"]
)
def test_a_field_of_any_name_is_refused_with_a_printable_message(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        validation.parse(document(**{name: 1}))
    assert "unknown field" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
