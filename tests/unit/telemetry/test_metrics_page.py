"""docs/metrics.md has the names and help texts of the collectors."""

from tools.generate.pages import metrics
from tools.generate.paths import DOCS


def test_page_is_up_to_date() -> None:
    page = DOCS / "metrics.md"
    assert page.read_text() == metrics.render(), "run `make reference`"


def test_every_metric_has_one_row_with_a_description() -> None:
    found = list(metrics.rows())
    assert len({row.name for row in found}) == len(found)
    assert all(row.name.startswith("autowasm_") and row.meaning.endswith(".") for row in found)
