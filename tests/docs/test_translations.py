"""A translated page has the headings, commands and links of the page that it translates."""

import re

import pytest

from tests.docs import blocks
from tests.docs.selection import TRANSLATIONS

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+ (?:\d+\. )?)", re.MULTILINE)


def _prose(page: str) -> str:
    text = (blocks.ROOT / page).read_text()
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _headings(page: str) -> list[str]:
    """Level and number of each."""
    return _HEADING.findall(_prose(page))


def _links(page: str) -> list[str]:
    """Targets, in their order in the original; a translation may turn the words of a sentence."""
    found = (link.replace(".zh-CN", "") for link in _LINK.findall(_prose(page)))
    own = page.rpartition("/")[2].replace(".zh-CN", "")
    return sorted(link for link in found if not link.endswith(own))


def _code(page: str) -> list[tuple[str, str, str]]:
    """Language, title and text of each block; comments are translated."""
    return [
        (
            block.language,
            block.title,
            re.sub(r"(^|\s+)# .*$", r"\1#", block.text, flags=re.MULTILINE),
        )
        for block in blocks.read(page)
    ]


@pytest.mark.parametrize(("translation", "original"), TRANSLATIONS.items())
def test_a_translation_has_the_headings_code_and_links_of_its_original(
    translation: str, original: str
) -> None:
    assert _headings(translation) == _headings(original)
    assert _code(translation) == _code(original)
    assert _links(translation) == _links(original)


def test_every_translation_is_compared_with_its_original() -> None:
    assert {page for page in blocks.pages() if ".zh-" in page} == TRANSLATIONS.keys()
