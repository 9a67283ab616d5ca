"""docs/capacity.md has the figures of the simulation as it is."""

import pytest

from tools.generate import capacity as page

pytestmark = pytest.mark.timeout(600)


def test_page_has_the_tables_of_this_simulation() -> None:
    text = page.PAGE.read_text()
    assert page.render(text) == text, "run: make bench-docs"
