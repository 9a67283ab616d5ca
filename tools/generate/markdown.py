"""Markdown that several generators write: tables, and blocks in pages whose other text is written by hand."""

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


def with_block(page: str, kind: str, name: str, text: str) -> str:
    """The page with `text` as the content of this block. Raises ValueError if a line around the block is missing."""
    before, opening, rest = page.partition(begin(kind, name))
    _, closing, after = rest.partition(end(kind))
    if not opening or not closing:
        raise ValueError(f"no block {kind}: {name}")
    return f"{before}{opening}{text}{closing}{after}"
