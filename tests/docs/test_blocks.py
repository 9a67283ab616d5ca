"""Nothing on a page escapes: each block is run, read by what it is for, or marked with the reason why not."""

import pytest

from tests.docs import blocks, pagerunner
from tests.docs.selection import INSTALL, LAPTOP, NOT_RUN, TRANSLATIONS, TUTORIAL, in_cluster
from tests.docs.shell import commands, matches


@pytest.mark.parametrize("page", blocks.pages())
def test_every_block_is_looked_at(page: str) -> None:
    assert pagerunner.problems(page) == []


@pytest.mark.parametrize("page", blocks.pages())
def test_the_text_before_a_file_names_it(page: str) -> None:
    """GitHub and editors do not show the title of a block."""
    lines = (blocks.ROOT / page).read_text().splitlines()
    unnamed = []
    for block in blocks.read(page):
        before = [line for line in lines[: block.line - 1] if line.strip()]
        if block.title and f"`{block.title}`" not in before[-1]:
            unnamed.append(f"{block}: {block.title}")
    assert unnamed == []


def test_every_page_with_commands_is_run() -> None:
    with_commands = {
        page
        for page in blocks.pages()
        if any(block.language in {"sh", "console", "yaml"} for block in blocks.read(page))
    }
    assert with_commands <= LAPTOP | {TUTORIAL, INSTALL, *in_cluster()} | TRANSLATIONS.keys()


def test_every_reason_is_still_needed() -> None:
    said = [block.first for page in blocks.pages() for block in blocks.read(page)]
    assert [start for start in NOT_RUN if not any(one.startswith(start) for one in said)] == []


@pytest.mark.parametrize(
    ("expected", "said", "right"),
    [
        ("Digest: sha256:…\n", "Digest: sha256:abc\n", True),
        ("Digest: sha256:…\n", "Digest: md5:abc\n", False),
        ("", "anything\n", False),
        ("a\n…\nb\n", "a\nx\ny\nb\n", True),
        ("a\n…\nb\n", "a\nx\ny\n", False),
    ],
)
def test_output_is_compared(expected: str, said: str, right: bool) -> None:
    assert matches(expected, said) is right


def test_a_command_goes_on_in_the_next_line() -> None:
    block = blocks.Block("page", 1, "console", "", "$ echo \\\n> a\na\n$ true\n")
    assert list(commands(block)) == [("echo \\\na\n", "a\n"), ("true\n", "")]
