"""The site is built without a warning, needs no other server, and its made pages are up to date."""

import ast
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autowasm.controller.pods.loadreport import MissingReason
from autowasm.reasons import Reason
from tests.docs import blocks, search, shell
from tests.docs.blocks import ROOT
from tools.generate import menu
from tools.generate.pages import fields, reasons

_ABROAD = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*stylesheet[^>]*href="(?:https?:)?//'
)


pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _pages(site: Path) -> dict[str, str]:
    """The HTML of each page of ours, by its path."""
    found = {str(page.relative_to(site)): page.read_text() for page in site.rglob("*.html")}
    del found["404.html"]
    return found


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = _pages(site)
    assert len(pages) > 30
    assert [name for name, page in pages.items() if _ABROAD.search(page)] == []


def test_every_page_leads_to_its_neighbours_and_to_its_source(site: Path) -> None:
    for name, page in _pages(site).items():
        source = name.replace(".html", ".md")
        assert f'href="https://github.com/autowasm/autowasm/edit/main/docs/{source}"' in page, name
        assert (ROOT / "docs" / source).is_file()
        assert "md-footer__link--next" in page or "md-footer__link--prev" in page, name


def test_names_in_code_are_marked_and_unchanged(site: Path) -> None:
    for name, page in _pages(site).items():
        prose = re.sub(r"<pre\b.*?</pre>", "", page, flags=re.DOTALL)
        for attributes, inside in re.findall(r"<code\b([^>]*)>(.*?)</code>", prose):
            text = re.sub(r"<wbr>|</?span[^>]*>", "", inside)
            assert (
                " " in text or 'class="name"' in attributes or "<wbr>" in inside or len(text) > 36
            )
            assert "<wbr><wbr>" not in inside, name


def test_no_list_is_rendered_inside_a_paragraph(site: Path) -> None:
    """Without an empty line before it, GitHub shows a list where the site does not."""
    paragraph = re.compile(r"<(p|li)>(.*?)</\1>", re.DOTALL)
    for name, page in _pages(site).items():
        texts = [re.sub(r"<code.*?</code>", "", text) for _, text in paragraph.findall(page)]
        assert [
            text for text in texts if re.search(r"^ *(?:[*-]|\d+\.) ", text, re.MULTILINE)
        ] == [], name


def test_only_commands_are_copied_from_a_terminal(site: Path) -> None:
    """The style sheet hides prompts and output while the theme copies; what is left are the commands."""
    style = (site / "assets/site.css").read_text()
    assert (
        ".highlight code[data-md-copying] :is(.gp, .go, span:has(> .go)) {\n  display: none;"
        in style
    )
    seen = 0
    for name, page in _pages(site).items():
        source = f"docs/{name.replace('.html', '.md')}"
        expected = [
            command
            for block in blocks.read(source)
            if block.language == "console"
            for command, _ in shell.commands(block)
        ]
        copied = "".join(_copied(block) for block in _CONSOLE.findall(page))
        assert _lines(copied) == _lines("".join(expected)), name
        seen += len(expected)
    assert seen > 30


_CONSOLE = re.compile(r'<div class="language-console highlight">.*?<code>(.*?)</code>', re.DOTALL)


def _copied(code: str) -> str:
    """The text of a block of HTML without its prompts and its output."""
    commands = re.sub(r'<span class="g[po]">.*?</span>', "", code, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", commands)) + "\n"


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rollback", "how-to/rollback.html"),
        ("air gap", "how-to/air-gap.html"),
        ("401", "how-to/private-registry.html"),
        ("401", "how-to/troubleshooting.html"),
        ("ImagePullBackOff", "faq.html"),
        ("Argo CD", "faq.html"),
        ("priority", "reference/autowasm.html"),
        ("1.36", "compatibility.html"),
        ("Synced", "reference/conditions.html"),
        ("uninstall", "install.html"),
        ("canary", "how-to/canary.html"),
        ("rollout", "how-to/roll-out-carefully.html"),
        ("Stalled", "reference/conditions.html"),
        ("Helm", "how-to/gitops.html"),
        ("AutoWasmNoLeader", "operations.html"),
    ],
)
def test_search_finds(words: str, expected: str, site: Path) -> None:
    assert expected in search.pages(site, words)[:5]


def test_search_works_from_a_disk(site: Path) -> None:
    """A browser lets a page on a disk read scripts only, and run no worker: hence the index as a script, and the shim."""
    index = json.loads((site / "search/search_index.json").read_text())
    script = (site / "search/search_index.js").read_text()
    assert json.loads(script.removeprefix("var __index = ")) == index
    shim = (site / "assets/iframe-worker.js").read_text()
    assert 'location.protocol==="file:"' in shim
    for name, page in _pages(site).items():
        assert re.search(r'<script src="(?:\.\./)*assets/iframe-worker\.js"', page), name


def test_every_page_is_in_the_menu() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    docs = ROOT / "docs"
    menu.complete(nav, docs)
    shown = yaml.safe_dump(nav)
    pages = [str(page.relative_to(docs)) for page in sorted(docs.rglob("*.md"))]
    places = re.findall(r"(?<=[ ])[\w./-]+\.md\b", shown)
    assert sorted(places) == pages


def test_the_fields_are_those_of_the_schema() -> None:
    page = ROOT / "docs/reference/autowasm.md"
    assert page.read_text() == fields.render(), "run `make reference`"


def test_every_field_has_its_anchor_and_its_example(site: Path) -> None:
    page = (site / "reference/autowasm.html").read_text()
    anchors = re.findall(r'<h3 id="([^"]+)">', page)
    paths = [
        path
        for name in ("spec", "status")
        for path, *_ in fields.fields(fields.schema()["properties"][name], name)
    ]
    assert len(paths) > 60
    assert anchors == [re.sub(r"[^a-z0-9]", "", path.lower()) for path in paths]
    sections = page.split("<h3 ")[1:]
    assert [
        path for path, text in zip(paths, sections, strict=True) if "Example: " not in text
    ] == []


def test_the_page_of_conditions_has_every_reason() -> None:
    page = ROOT / "docs/reference/conditions.md"
    assert page.read_text() == reasons.render(), "run `make reference`"
    proof = (ROOT / "docs/explanation/proof.md").read_text()
    assert [why.value for why in MissingReason if f"`{why.value}`" not in proof] == []


def test_every_reason_is_used_and_no_error_has_another_one() -> None:
    used, literals = set(), []
    for file in (ROOT / "src/autowasm").rglob("*.py"):
        text = file.read_text()
        used |= set(re.findall(r"\bReason\.([A-Z0-9_]+)\b", text))
        literals += [
            f"{file.name}:{node.lineno}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Raise) and _has_literal_reason(node)
        ]
    assert [one.name for one in Reason if one.name not in used] == []
    assert literals == []


def _has_literal_reason(node: ast.AST) -> bool:
    return any(
        isinstance(each, ast.keyword)
        and each.arg == "reason"
        and isinstance(each.value, ast.Constant)
        and isinstance(each.value.value, str)
        for each in ast.walk(node)
    )
