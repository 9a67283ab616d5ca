"""Conversions of damaged objects: never an exception, and each AutoWasm is valid or refused by the parser."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autowasm.api.validation import parse
from autowasm.convert.conversion import Batch
from autowasm.convert.dispatch import converter_of
from autowasm.errors import SpecError
from tests.unit.convert.conversions import objects

OBJECTS = list(objects())
ODD = st.sampled_from(
    [None, True, 0, -1, 2**70, 1.5, "", "x", "a\x1b", [], [None], ["x"], [[]], {}, {"a": None}, {"": []}]
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container with each of its keys."""
    found = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in list(found):
        yield value, key
        if isinstance(one, dict | list):
            yield from places(one)


@given(st.data())
def test_damaged_object_is_converted_or_its_losses_are_named(data: st.DataObject) -> None:
    sources = [copy.deepcopy(one) for one in data.draw(st.permutations(OBJECTS))[:3]]
    for source in sources:
        for _ in range(data.draw(st.integers(1, 3))):
            container, key = data.draw(st.sampled_from(list(places(source))))
            container[key] = copy.deepcopy(data.draw(ODD))
    for source in sources:
        converter = converter_of(source)
        if converter is None:
            continue
        found = converter(source, Batch(sources, gateway=data.draw(st.booleans())))
        for document in found.autowasms:
            with suppress(SpecError):
                parse(document)
        for one in found.losses + found.notes:
            assert isinstance(one.path, str)
            assert isinstance(one.problem, str)
