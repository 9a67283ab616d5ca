"""A hook of mkdocs: adds pages to the menu of mkdocs.yml.

It adds all decisions of docs/adr, and under Explanation each page directly in docs/ that is not listed. The search ranks decisions
last, and the page of reasons before the pages that mention one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_BOOSTS: Final = {"adr/": 0.1, "reference/conditions.md": 3}
"""By the beginning of a page's path. A reason is a title on its page only, and the page of reasons explains it."""


def on_config(config: Any) -> Any:
    """Called by mkdocs once the configuration is read."""
    complete(config["nav"], Path(config["docs_dir"]))
    return config


def on_page_markdown(text: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    for beginning, boost in _BOOSTS.items():
        if page.file.src_uri.startswith(beginning):
            page.meta["search"] = {"boost": boost}
    return text


def complete(nav: list[Any], docs: Path) -> None:
    """Add the pages below `docs` to `nav`, in place."""
    listed = set(_listed(nav))
    rest = [page.name for page in sorted(docs.glob("*.md")) if page.name not in listed]
    decisions = [str(page.relative_to(docs)) for page in sorted((docs / "adr").glob("*.md"))]
    explanation = next(entry for entry in nav if isinstance(entry, dict) and "Explanation" in entry)
    explanation["Explanation"] += [*rest, {"Decisions": decisions}]


def _listed(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for pages in entry.values():
                yield from _listed([pages] if isinstance(pages, str) else pages)
