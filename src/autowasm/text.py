"""Untrusted names, such as those of modules and archives, shortened and escaped for messages.

Invariant: the result is one short line of printable characters for any input, safe in a status, an Event and a log.
Not quoting for programs: the result cannot be parsed back.
"""

import re
from collections.abc import Sequence
from typing import Final

_SECRET_PARTS: Final = re.compile(r"(?<=//)[^/@\s]*@|[?#].*", re.DOTALL)
INVISIBLE: Final = re.compile("[\u00a0\u1680\u2000-\u200f\u202f\u205f\u2060\u3000\ufeff]")
"""Unusual and zero-width spaces, which copied text may contain."""


def shown(text: str | bytes, *, most: int = 120) -> str:
    """`text` with unprintable characters escaped, cut after `most` characters."""
    if isinstance(text, bytes):
        text = text[: 4 * most].decode(errors="backslashreplace")
    head = text[: most + 1]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return line if len(line) <= most else line[: most - 1] + "…"


def listed(names: Sequence[str], *, most: int = 5) -> str:
    """The first `most` of `names`, separated by commas, and the number of the others."""
    line = ", ".join(shown(name) for name in names[:most])
    more = len(names) - most
    return f"{line} and {more} more" if more > 0 else line


def without_secrets(url: str) -> str:
    """A URL, or a text that may be one, without its user, password, query and fragment."""
    return _SECRET_PARTS.sub("…", url)
