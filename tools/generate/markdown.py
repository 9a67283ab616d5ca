"""Markdown for several generators: tables, and generated blocks in pages that are otherwise written by hand."""

from collections.abc import Iterable, Sequence


def table(header: str, rows: Iterable[Sequence[str]]) -> str:
    """A table; `header` is its first line, as in `| a | b |`. Ends with a newline."""
    lines = [header, "|" + "---|" * (header.count("|") - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def begin(kind: str, name: str) -> str:
    """The line before a block of a page."""
    return f"<!-- {kind}: {name} -->\n"


def end(kind: str) -> str:
    """The line after it."""
    return f"<!-- end of {kind} -->\n"


def block(page: str, kind: str, name: str) -> str:
    """The content of this block. Raises ValueError if a line around it is missing."""
    return _parts(page, kind, name)[1]


def with_block(page: str, kind: str, name: str, text: str) -> str:
    """The page with `text` as the content of this block. Raises ValueError if a line around the block is missing."""
    before, _, after = _parts(page, kind, name)
    return f"{before}{text}{after}"


def _parts(page: str, kind: str, name: str) -> tuple[str, str, str]:
    """Before the content of the block, with its first line; the content; its last line and the rest."""
    before, opening, rest = page.partition(begin(kind, name))
    content, closing, after = rest.partition(end(kind))
    if not opening or not closing:
        raise ValueError(f"no block {kind}: {name}")
    return before + opening, content, closing + after
