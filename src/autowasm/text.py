"""Names that others chose, made fit for a message.

Not a quoting for programs. Invariant: what comes out is one short line of printable characters, whatever went in, so
that a module's or an archive's names can stand in a status, an Event and a log.
"""

from collections.abc import Sequence


def shown(text: str | bytes, *, most: int = 120) -> str:
    """`text` with unprintable characters escaped, cut after `most` characters."""
    if isinstance(text, bytes):
        text = text[: 4 * most].decode(errors="backslashreplace")
    head = text[: most + 1]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return line if len(line) <= most else line[: most - 1] + "…"


def listed(names: Sequence[str], *, most: int = 5) -> str:
    """The first `most` of `names` with commas between them, and how many more there are."""
    line = ", ".join(shown(name) for name in names[:most])
    more = len(names) - most
    return f"{line} and {more} more" if more > 0 else line
