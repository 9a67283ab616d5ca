"""The text of `dump`; `tests/integration/standalone/test_written_yaml.py` tests that every reader takes it as meant."""

from typing import Any

import pytest
import yaml

from autowasm.manifests import writer
from autowasm.manifests.nodes import Unreadable


def test_writer_quotes_only_text_that_a_reader_may_take_for_another_type() -> None:
    document = {"name": "a-b/c.d", "y": "y", "8080": "0X1F", "n": None, "on": True, "one": 1}
    assert writer.dump(document) == (
        'name: a-b/c.d\n"y": "y"\n"8080": "0X1F"\n"n": null\n"on": true\none: 1\n'
    )


def test_yaml_is_block_style_in_the_order_of_the_document_without_aliases() -> None:
    shared = {"z": 1, "a": ["2021-10-27T10:00:36Z", "yes", "ü😀"]}
    document: dict[str, Any] = {"kind": "X", "apiVersion": "v1", "one": shared, "two": shared}

    written = writer.dump(document)

    assert written.startswith('kind: X\napiVersion: v1\none:\n  z: 1\n  a:\n  - "2021-')
    assert "ü" in written
    assert not any(mark in written for mark in "&*{}")
    assert yaml.safe_load(written) == document


def test_long_strings_stay_on_their_line() -> None:
    assert writer.dump({"a": "word " * 2_000}).count("\n") <= 2


def test_yaml_of_earlier_versions_is_read_back_as_intended() -> None:
    """PyYAML's own dumper left these without quotes."""
    meant = {"DEBUG": "y", "rate": "1e3", "octal": "0o17", "at": "2021-10-27T10:00:36Z", "N": "x"}
    assert writer.read_back(yaml.safe_dump(meant)) == meant
    assert writer.read_back("at: 2021-10-27\n") == {"at": "2021-10-27"}


@pytest.mark.parametrize("text", ["a: [", "a: !!bool x", "a: !!timestamp x", "\x00"])
def test_read_back_refuses_text_that_the_writer_never_produces(text: str) -> None:
    with pytest.raises(Unreadable):
        writer.read_back(text)
