"""`wasmc inspect --start`: the verdict of the pre-flight, and the command that shows more."""

import json
from pathlib import Path

import pytest

from autowasm.cli import wasmc
from tests.unit.cli import gate


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate.wasm").write_bytes(gate.module())


def test_refused_configuration_fails_with_the_command_to_reproduce_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert wasmc.main(["inspect", "gate.wasm", "--start", "--env", "A=b c"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("Verdict"))
    assert lines[at:] == [
        "Verdict accepted: valid, and Envoy provides all of its imports",
        "Start   refused: spec.filter.pluginConfig: the module refuses it",
        "        (proxy_on_configure returned 0: the module refuses its configuration),",
        "        so every sidecar would answer 503; its last log lines: error: no team is",
        "        configured [ConfigurationRefused]",
        "        To reproduce: wasmc run gate.wasm --env 'A=b c'",
    ]


def test_accepted_configuration_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "gate.wasm", "--start", "--config", "blue"]
    assert wasmc.main(arguments) == 0
    assert "Start   the module starts with this configuration" in capsys.readouterr().out
    assert wasmc.main([*arguments, "--json"]) == 0
    start = json.loads(capsys.readouterr().out)["start"]
    assert (start["status"], start["reason"]) == ("True", "Started")
    assert start["command"] == "wasmc run gate.wasm --config blue"


def test_module_runs_only_with_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert wasmc.main(["inspect", "gate.wasm", "--json"]) == 0
    assert "start" not in json.loads(capsys.readouterr().out)
    assert wasmc.main(["inspect", "gate.wasm", "--config", "x"]) == 2
    assert "--config is for --start" in capsys.readouterr().err
