"""`python -m tools.release.changelog VERSION`: the section of a version in CHANGELOG.md, as notes of its release."""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Final

CHANGELOG: Final = Path(__file__).parents[2] / "CHANGELOG.md"


def section(text: str, version: str) -> str:
    """The text below `## [VERSION] - YYYY-MM-DD`. Raises ValueError if there is no such heading, no date, or no text."""
    parts = re.split(r"^## \[([^\]]+)\](.*)\n", text, flags=re.MULTILINE)
    sections = {parts[i]: (parts[i + 1], parts[i + 2]) for i in range(1, len(parts), 3)}
    if version not in sections:
        raise ValueError(f"no section [{version}]")
    rest, body = sections[version]
    try:
        date.fromisoformat(rest.removeprefix(" - "))
    except ValueError:
        raise ValueError(f"the section [{version}] has no date") from None
    body = re.sub(r"^\[[^\]]+\]: \S+\n", "", body, flags=re.MULTILINE).strip()  # targets of links
    if not body:
        raise ValueError(f"the section [{version}] is empty")
    return body + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.release.changelog")
    parser.add_argument("version")
    try:
        print(section(CHANGELOG.read_text(), parser.parse_args(arguments).version), end="")
    except ValueError as error:
        print(f"CHANGELOG.md: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
