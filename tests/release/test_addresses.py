"""The addresses of repository and site are one, work where there is no checkout, and lead to what is here."""

import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
REPOSITORY, SITE = URLS["Repository"], URLS["Documentation"]
ELSEWHERE = ("README.md", "README.zh-CN.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
"""Pages that are shown outside of the repository, too: on the package index, or by GitHub on pages of its own."""

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ADDRESS = re.compile(r"https://(?:github\.com/autowasm|autowasm\.github\.io)[^\s)\"'`>|]*")
_PAGES_OF_GITHUB = ("/issues", "/security/", "/releases/", "/compare/")


def _texts() -> dict[str, str]:
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    suffixes = (".md", ".toml", ".yml", ".yaml", "Dockerfile")
    return {
        name: (ROOT / name).read_text()
        for name in listed
        if name.endswith(suffixes) and not name.startswith("tests/") and (ROOT / name).is_file()
    }


@pytest.mark.parametrize("page", ELSEWHERE)
def test_links_work_where_the_page_is_shown_alone(page: str) -> None:
    links = _LINK.findall((ROOT / page).read_text())
    assert links
    assert [link for link in links if urlsplit(link).scheme != "https"] == []


def test_repository_addresses_lead_to_existing_files() -> None:
    found = {
        (name, address.rstrip(".,"))
        for name, text in _texts().items()
        for address in _ADDRESS.findall(text)
    }
    assert len(found) > 50
    assert sorted((name, address) for name, address in found if not _is_here(address)) == []


def _is_here(address: str) -> bool:
    if address.startswith(SITE):
        page = address.removeprefix(SITE).partition("#")[0]
        return page in {"", "charts"} or (ROOT / "docs" / page.replace(".html", ".md")).is_file()
    rest = address.removeprefix(REPOSITORY).partition("@refs/")[0]  # a workflow at a tag
    if rest == address or rest.startswith(_PAGES_OF_GITHUB):
        return rest != address
    return (ROOT / re.sub(r"^/(?:(?:blob|tree|edit)/main/)?", "", rest)).exists()


def test_the_site_has_its_address() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text().replace("!!python", "python"))
    assert site["site_url"] == SITE


def test_code_owner_patterns_match_existing_files() -> None:
    lines = (ROOT / ".github/CODEOWNERS").read_text().splitlines()
    patterns = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert [one for one in patterns if one != "*" and not list(ROOT.glob(one.strip("/")))] == []
