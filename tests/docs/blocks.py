"""The code blocks of the documentation.

Not what they mean (`shell.py`). Invariant: every fence of a page is found, or the page is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r'^(?P<indent> *)```(?P<language>[a-z]*)(?: title="(?P<title>[^"]+)")?(?P<rest>.*)$'
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fence."""

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first(self) -> str:
        """Its first line that is no comment, without a prompt."""
        lines = [line for line in self.text.splitlines() if line and not line.startswith("#")]
        return lines[0].removeprefix("$ ") if lines else ""


def pages() -> list[str]:
    """Every page that people read, by its path from the root of the repository."""
    found = [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(page.relative_to(ROOT)) for page in found)


def read(page: str) -> list[Block]:
    """Its blocks in their order. Raises ValueError at a fence that cannot be read."""
    return list(_read(page, (ROOT / page).read_text().splitlines()))


def _read(page: str, lines: list[str]) -> Iterator[Block]:
    rest = iter(enumerate(lines, start=1))
    for number, line in rest:
        if not line.lstrip().startswith("```"):
            continue
        opening = _FENCE.match(line)
        if opening is None or opening["rest"] or not opening["language"]:
            raise ValueError(f"{page}:{number}: say the language of a block, and nothing unknown")
        indent, body = len(opening["indent"]), []
        for _, inner in rest:
            if inner.strip() == "```":
                break
            body.append(inner[indent:])
        else:
            raise ValueError(f"{page}:{number}: never closed")
        text = "\n".join(body) + "\n"
        yield Block(page, number, opening["language"], opening["title"] or "", text)
