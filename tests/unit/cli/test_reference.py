"""docs/cli.md is the help of the programs."""

import re
from typing import Final

import pytest

from tools.generate.pages import commandline
from tools.generate.paths import DOCS

_BOTH_FORMS: Final = re.compile(r"(-\w) ('[^']*'|\S+), (--[\w-]+ \2)(?=\s)")


def test_command_line_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = DOCS / "cli.md"
    assert words(page.read_text()) == words(commandline.render()), "run `make reference`"


def words(page: str) -> list[str]:
    """The page without argparse's layout: from 3.13 on it writes `-f, --file FILE`, and columns and wraps move with it."""
    return _BOTH_FORMS.sub(r"\1, \3", page).split()


def test_layouts_of_all_pythons_are_the_same_words() -> None:
    assert words("  -f FILE, --file FILE\n      the module") == words(
        "  -f, --file FILE  the module"
    )
    assert words("  -H 'NAME: VALUE', --header 'NAME: VALUE'\n      a header") == words(
        "  -H, --header 'NAME: VALUE'  a header"
    )
    assert words("-f FILE, --file FILE") != words("-f FILE, --file OTHER")
