"""docs/cli.md is what the programs say of themselves."""

from pathlib import Path

import pytest

from docs import reference


def test_command_line_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = Path(reference.__file__).with_name("cli.md")
    assert page.read_text() == reference.render(), "run `make reference`"
