"""docs/layouts.md: the table of layouts, in a page that is otherwise written by hand."""

from autowasm.registry import layouts
from tools.generate import markdown


def render(page: str) -> str:
    """The page with the table of the code. Raises ValueError if the page has no place for it."""
    return markdown.with_block(page, "table", "registry/layouts.py", layouts.table())
