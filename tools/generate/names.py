"""A hook of mkdocs: names in code never break in the middle of a word.

A short name stays on one line. A long one may break after a separator; copied text contains no break.
Invariant: only inline code is changed, and its text stays the same.
"""

import html
import re
from typing import Any, Final

_CODE: Final = re.compile(r"(<pre\b.*?</pre>)|<code>([^<]*)</code>", re.DOTALL)
_LONGEST: Final = 36
"""Characters that fit on a line of a phone."""
_SEPARATOR: Final = re.compile(r"([/_.=,:@]+|--?)(?=\w)")


def on_page_content(text: str, **_: Any) -> str:
    """Called by mkdocs with the HTML of each page."""
    return _CODE.sub(_marked, text)


def _kept_whole(word: str) -> str:
    text = html.escape(word, quote=False)
    is_name = len(word) <= _LONGEST and not word.isalnum() and not word.isspace()
    return f'<span class="name">{text}</span>' if is_name else text


def _marked(found: re.Match[str]) -> str:
    if found[1]:
        return found[0]
    name = html.unescape(found[2])
    if " " in name and len(name) > _LONGEST:
        return f"<code>{''.join(_kept_whole(part) for part in re.split('( +)', name))}</code>"
    if len(name) <= _LONGEST:
        return f'<code class="name">{found[2]}</code>'
    parts = _SEPARATOR.split(name)
    pairs = zip(parts[::2], [*parts[1::2], ""], strict=True)
    return f"<code>{'<wbr>'.join(html.escape(word + mark, quote=False) for word, mark in pairs)}</code>"
