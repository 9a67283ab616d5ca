"""The published JSON Schema of a suite, and the page about its fields, follow from the code."""

import json

from tools.generate.pages import suite
from tools.generate.paths import DOCS


def test_schema_and_page_are_up_to_date() -> None:
    schema = DOCS / "reference/wasmc-test.schema.json"
    assert json.loads(schema.read_text()) == suite.schema(), "run `make reference`"
    page = (DOCS / "reference/wasmc-test.md").read_text()
    assert page == suite.render(page), "run `make reference`"


def test_schema_refuses_unknown_fields_everywhere() -> None:
    for name, node in suite.schema()["$defs"].items():
        if "properties" in node:
            assert node["additionalProperties"] is False, name
