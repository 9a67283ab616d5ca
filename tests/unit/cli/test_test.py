"""`wasmc test`: what is printed, at 80 columns, the exit status, and the JUnit file."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from autowasm.cli import wasmc
from autowasm.sandbox import engine
from tests.parts import wat
from tests.unit.cli import gate

SUITE = """\
defaults:
  module: gate.wasm
  config: blue
cases:
  - name: passes
    request: {headers: {x-user: alice}}
    expect:
      request: {headers: {x-team: green}}
      response: {status: 200}
  - name: denied
    expect:
      response: {status: 401, body: {regex: "^say"}}
  - name: no team
    config: ""
    start: Starts
"""
FAILED = """\
suite.yaml
  FAIL  passes (suite.yaml:5)
        expect.request.headers.x-team (line 8)
          - green
          + blue
  ok    denied
  FAIL  no team (suite.yaml:13)
        start (line 15)
          - Starts
          + Refused: proxy_on_configure returned 0: the module refuses its
            configuration
        log of the filter:
          error: no team is configured
1 passed, 2 failed in … s
"""


class Suites:
    """Runs it in a folder of its own, in which `gate.wasm` is."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, status: int = 0) -> str:
        found = wasmc.main(["test", *arguments])
        captured = self._capsys.readouterr()
        assert (found, captured.err) == (status, ""), captured
        return re.sub(r"in \d+\.\d\d s", "in … s", captured.out)

    def error(self, *arguments: str, status: int = 2) -> str:
        assert wasmc.main(["test", *arguments]) == status
        return self._capsys.readouterr().err


@pytest.fixture
def suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Suites:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate.wasm").write_bytes(gate.module())
    (tmp_path / "suite.yaml").write_text(SUITE)
    return Suites(capsys)


def test_differences_are_shown_with_their_lines(suites: Suites) -> None:
    assert suites("suite.yaml", status=1) == FAILED


def test_selected_cases_run_and_the_others_are_counted(suites: Suites) -> None:
    found = suites("suite.yaml", "-k", "denied")
    assert found == "suite.yaml\n  ok    denied\n1 passed, 2 not selected in … s\n"
    assert "none of the 3 cases has such a name" in suites.error("suite.yaml", "-k", "nothing")
    assert "-k: a word is missing" in suites.error("suite.yaml", "-k", "and")


def test_quiet_shows_failures_only(suites: Suites) -> None:
    found = suites("suite.yaml", "-q", status=1)
    assert found.startswith("  FAIL  passes")
    assert "ok" not in found
    assert suites("suite.yaml", "-q", "-k", "denied") == "1 passed, 2 not selected in … s\n"


def test_the_suite_of_the_example_passes(suites: Suites) -> None:
    found = suites(str(gate.FOLDER / "suite.yaml"), "--module", "gate.wasm")
    assert found.endswith("\n6 passed in … s\n")


def test_the_job_of_the_example_runs_its_suite_with_the_actions_of_our_own(suites: Suites) -> None:
    root = gate.FOLDER.parents[1]
    text = (gate.FOLDER / "workflow.yaml").read_text()
    steps = yaml.safe_load(text)["jobs"]["test"]["steps"]
    (command,) = [one["run"] for one in steps if one.get("run", "").startswith("wasmc ")]
    _, _, *arguments = command.split()
    Path("suite.yaml").write_text((gate.FOLDER / "suite.yaml").read_text())
    suites(*arguments)
    assert ET.parse("results.xml").getroot().find("testsuite") is not None
    ours = "".join(path.read_text() for path in (root / ".github").rglob("*.yml"))
    for action in re.findall(r"uses: (\S+ # \S+)", text):
        assert f"uses: {action}" in ours


def test_junit_file_has_each_case(suites: Suites) -> None:
    suites("suite.yaml", "--junit", "out.xml", status=1)
    (suite,) = ET.parse("out.xml").getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("3", "2")
    cases = {case.attrib["name"]: case for case in suite}
    failure = cases["passes"].find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "expect.request.headers.x-team: - green"
    assert failure.text == "expect.request.headers.x-team\n  - green\n  + blue"
    assert cases["denied"].find("failure") is None
    output = cases["no team"].find("system-out")
    assert output is not None
    assert output.text == "error: no team is configured"
    assert cases["no team"].attrib["line"] == "13"


def test_invalid_suite_is_reported_before_any_case_runs(suites: Suites) -> None:
    Path("wrong.yaml").write_text("cases:\n- name: a\n  expected: {}\n")
    message = suites.error("suite.yaml", "wrong.yaml")
    assert message == (
        "wasmc: error: wrong.yaml: line 3: cases[0].expected: unknown field; did you mean expect?\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cases: [{name: a}]", "line 1: cases[0]: no module: set defaults.module, or use --module"),
        ("defaults: {module: absent.wasm}\ncases: [{name: a}]", "absent.wasm: No such file"),
        (
            "defaults: {module: gate.wasm}\ncases:\n- {name: a, configFile: absent}",
            "line 3: cases[0]: configFile absent: No such file",
        ),
        (
            "defaults: {module: gate.wasm}\ncases:\n- {name: a, config: b, configFile: absent}",
            "line 3: cases[0]: config and configFile are mutually exclusive",
        ),
        (
            "defaults: {module: gate.wasm}\ncases:\n- name: a\n  request: {headers: {'a b': c}}",
            "line 3: cases[0]: headers: not a header of HTTP",
        ),
    ],
)
def test_suite_that_cannot_run_is_a_usage_error(suites: Suites, text: str, message: str) -> None:
    Path("other.yaml").write_text(text)
    assert message in suites.error("other.yaml")


def test_module_that_envoy_would_not_load_ends_with_status_1(suites: Suites) -> None:
    Path("gate.wasm").write_bytes(wat.compile_text("(module)"))
    assert "module gate.wasm" in suites.error("suite.yaml", status=1)


def test_cases_are_isolated_and_steps_are_not(suites: Suites) -> None:
    denied = {"expect": {"metrics": {"gate_denied": 1}}}
    twice = {"steps": [denied, {"expect": {"metrics": {"gate_denied": 2}}}]}
    cases = [{"name": "a", **denied}, {"name": "b", **denied}, {"name": "c", **twice}]
    defaults = {"module": "gate.wasm", "config": "blue"}
    Path("suite.json").write_text(json.dumps({"defaults": defaults, "cases": cases}))
    assert suites("suite.json", "-q") == "3 passed in … s\n"


def test_a_module_is_compiled_once_for_all_cases(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def counted(used: engine.Engine, wasm: bytes) -> engine.Compiled:
        compiled.append(len(wasm))
        return engine.compile_module(used, wasm)

    monkeypatch.setattr("autowasm.cli.test.compile_module", counted)
    suites("suite.yaml", "suite.yaml", status=1)
    assert len(compiled) == 2, "once for each suite"


def test_module_of_a_suite_is_relative_to_it_and_that_of_the_flag_is_not(
    suites: Suites,
) -> None:
    Path("folder").mkdir()
    Path("folder/suite.yaml").write_text(SUITE)
    assert "folder/gate.wasm" in suites.error("folder/suite.yaml")
    suites("folder/suite.yaml", "--module", "gate.wasm", "-k", "denied")
