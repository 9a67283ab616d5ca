"""Realistic manifests: what becomes of each is reviewed as text, and nothing is dropped in silence."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from autowasm.convert.conversion import Conversion
from tests.unit.convert import conversions

GOLDEN = Path(__file__).with_name("conversions.txt")
CONVERSIONS = list(conversions.conversions())


def test_conversions_are_those_that_were_reviewed() -> None:
    assert conversions.text() == GOLDEN.read_text(), conversions.__doc__


@pytest.mark.parametrize(
    ("source", "found"), CONVERSIONS, ids=[one["metadata"]["name"] for one, _ in CONVERSIONS]
)
def test_each_message_names_a_field_of_the_object(
    source: Mapping[str, Any], found: Conversion
) -> None:
    assert found.autowasms or found.losses or found.notes
    for one in found.losses + found.notes:
        parent: Any = source
        *above, _ = re.findall(r"[^.\[\]]+", one.path)
        for step in above:
            parent = parent[int(step)] if step.isdigit() else parent[_spelt(parent, step)]
        assert parent is not None, one.path


def _spelt(parent: Mapping[str, Any], name: str) -> str:
    """The field's name as it is written: EnvoyFilters may use protobuf's."""
    snake = re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name)
    return name if name in parent else snake
