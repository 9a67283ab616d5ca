"""`python -m tools.generate.reference`: write the pages of docs/ that follow from the code.

The command line, metrics, the table of layouts, the fields of AutoWasms and of suites, the reasons of conditions.
"""

from collections.abc import Mapping
from pathlib import Path

from tools.generate.pages import commandline, fields, layouts, metrics, reasons, suite
from tools.generate.paths import DOCS


def pages() -> Mapping[Path, str]:
    """The text of each page by its path."""
    return {
        DOCS / "cli.md": commandline.render(),
        DOCS / "metrics.md": metrics.render(),
        DOCS / "reference/autowasm.md": fields.render(),
        DOCS / "reference/conditions.md": reasons.render(),
        DOCS / "reference/wasmc-test.schema.json": suite.render_schema(),
        DOCS / "reference/wasmc-test.md": suite.render(
            (DOCS / "reference/wasmc-test.md").read_text()
        ),
        DOCS / "layouts.md": layouts.render((DOCS / "layouts.md").read_text()),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
