"""What a source resolved to, as the record that is published."""

from typing import Any

import pytest

from autowasm.api.record import Record, belongs_to
from autowasm.artifacts.source import Pinned
from tests.fakes.autowasms import IMAGE, URL, autowasm, digest

MANIFEST = f"registry.example/team/filter@sha256:{digest('b')}"
MODIFIED = "Wed, 27 Oct 2021 10:00:36 GMT"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ({"registry": {"image": IMAGE}}, {"image": MANIFEST}),
        ({"object": {"url": URL}}, {"url": URL, "etag": '"1"', "last_modified": MODIFIED}),
    ],
    ids=["image", "object"],
)
def test_a_record_names_the_content_and_belongs_to_its_source(
    source: dict[str, Any], found: dict[str, str]
) -> None:
    asked = autowasm(source=source).spec.filter.source
    module: dict[str, Any] = {"sha256": digest("a"), "size": 7, "abi": "0.2.1"}
    record = Pinned(**found).record(asked, **module, secret_uid="u")
    assert record == Record(source=str(asked), **module, **found, secret_uid="u")
    assert belongs_to(record, str(asked))
