"""The lines that the page about troubleshooting quotes are Envoy's own: its program has them."""

import re

import pytest

from tests.docs.blocks import ROOT
from tests.parts import provision, pypi

_TABLE = re.compile(r"^\| The log says .*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
_LEFT_TO_OTHERS = re.compile(
    r"…|NAME|\[uri|outbound\\\|.*|\d{3}$|env\.|Function: .*? failed: |Uncaught Error: "
)
_SHORTEST = 6


def _quoted() -> list[str]:
    """Each quoted piece that is Envoy's own words, without what differs each time."""
    page = (ROOT / "docs/how-to/troubleshooting.md").read_text()
    cells = [
        row.replace("\\|", "\x00").split("|")[1]
        for table in _TABLE.findall(page)
        for row in table.splitlines()
    ]
    lines = [
        line.replace("\x00", "\\|") for cell in cells for line in re.findall(r"`([^`]+)`", cell)
    ]
    pieces = {piece.strip(" :=]()") for line in lines for piece in _LEFT_TO_OTHERS.split(line)}
    return sorted(piece for piece in pieces if len(piece) >= _SHORTEST)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
def test_envoy_has_every_line_that_is_quoted(version: str) -> None:
    program = provision.envoy(version).read_bytes()
    quoted = [*_quoted(), "wasm_fail_stream", "remote_load_fetch_failures"]
    assert len(quoted) > 12
    assert [line for line in quoted if line.encode() not in program] == []
