"""`wasmer check-uninstall` where no API server is needed: what it says, and what it says without one."""

from pathlib import Path

import pytest

from autowasm.cli import uninstall, wasmer


def _autowasm(number: int) -> uninstall.Document:
    return {"metadata": {"namespace": "team", "name": f"filter-{number}"}}


def test_it_names_the_first_and_counts_the_rest() -> None:
    said = uninstall._report([_autowasm(n) for n in range(500)], more=20)
    assert "there are 520 AutoWasms" in said
    assert "team/filter-9, …" in said
    assert "filter-10" not in said
    assert "--no-hooks" in said


def test_nothing_left_is_said_only_if_nothing_is_left() -> None:
    assert "can be uninstalled" in uninstall._report([], more=0)
    assert "Refused" in uninstall._report([], more=3)


def test_outside_of_a_cluster_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        wasmer.main(["check-uninstall", "--kubeconfig", str(tmp_path / "none")])
    assert caught.value.code == 2
    assert "none" in capsys.readouterr().err
