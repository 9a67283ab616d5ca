"""`wasmc run`: what is printed, at 80 columns, and the exit status."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from autowasm.cli import stdio, wasmc
from tests.parts import wat
from tests.unit.cli import gate

TRAPS = """(module (memory (export "memory") 1)
(func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param i32) (result i32) (i32.const 0))
(func $inner unreachable)
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $inner) (i32.const 0)))"""
LOOPS = TRAPS.replace("(func $inner unreachable)", "(func $inner (loop $l (br $l)))")
TCP = """(module (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
(memory (export "memory") 1) (data (i32.const 16) "\\1b[31mred\\nline")
(func (export "proxy_abi_version_0_2_1"))
(func (export "malloc") (param i32) (result i32) (i32.const 0))
(func (export "proxy_on_new_connection") (param i32) (result i32)
  (drop (call $log (i32.const 3) (i32.const 16) (i32.const 13))) (i32.const 0)))"""
AUTOWASM = """
apiVersion: wasm.tcm.io/v1alpha1
kind: AutoWasm
metadata: {{name: {name}, namespace: shop}}
spec:
  filter:
    source: {{registry: {{image: registry.example/gate:v1}}}}
    pluginConfig: {config}
    failStrategy: {strategy}
  selector: {{matchLabels: {{app: a}}}}
"""


class Run:
    """Runs it in a folder of its own, in which `gate.wasm` is."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def text(self, *arguments: str, status: int = 0) -> str:
        found = wasmc.main(["run", *arguments])
        captured = self._capsys.readouterr()
        assert (found, captured.err) == (status, ""), captured
        return captured.out

    def json(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.text(*arguments, "--json", status=status))
        return document

    def error(self, *arguments: str, status: int = 2) -> str:
        found = wasmc.main(["run", *arguments])
        captured = self._capsys.readouterr()
        assert (found, captured.out) == (status, "")
        return captured.err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate.wasm").write_bytes(gate.module())
    return Run(capsys)


def without_fuel(text: str) -> str:
    """The figures of fuel and the digest are those of a compiler's version."""
    text = re.sub(r"sha256 [0-9a-f]{12}", "sha256 …", text)
    return re.sub(r"(?m)^Fuel .*\n?", "", text)


PASSED = """\
Module     gate.wasm (929 B, sha256 …)
Config     4 B: blue
Start      the module starts with this configuration
Request    forwarded to the service
             :authority: example.com
             :path: /orders
             :method: POST
             :scheme: http
             x-user: alice
             x-long: aaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
               cccccccccccccccccccc
             content-length: 5
             x-forwarded-proto: http
             x-request-id: 00000000-0000-4000-8000-000000000001
           + x-team: blue
             x-envoy-expected-rq-timeout-ms: 15000
             body: 5 B, unchanged
Response   404 from the service
             :status: 404
             content-length: 0
             x-envoy-upstream-service-time: 0
             date: Thu, 01 Jan 2026 00:00:00 GMT
             server: envoy
           - x-internal: 42
Metrics    gate_denied 0 (counter)
"""


def test_request_that_passes_is_shown_with_its_changes(run: Run) -> None:
    text = run.text(
        *("gate.wasm", "--config", "blue", "--request", "POST /orders", "--body", "hello"),
        *("-H", "X-User: alice", "-H", f"x-long: {'a' * 25} {'b' * 30} {'c' * 20}"),
        *("--response-status", "404", "--response-header", "x-internal: 42"),
    )
    assert without_fuel(text) == PASSED
    assert "Fuel" in text


DENIED = """\
Module     gate.wasm (929 B, sha256 …)
Config     4 B: blue
Start      the module starts with this configuration
Request    not forwarded to the service
Response   401, a local reply
             :status: 401
             content-length: 16
             content-type: text/plain
             date: Thu, 01 Jan 2026 00:00:00 GMT
             server: envoy
             body: 16 B
             | say who you are
Metrics    gate_denied 1 (counter)
"""


def test_local_reply_is_shown_and_no_failure(run: Run) -> None:
    assert without_fuel(run.text("gate.wasm", "--config", "blue")) == DENIED


REFUSED = """\
Module     gate.wasm (929 B, sha256 …)
Start      refused: proxy_on_configure returned 0: the module refuses its
           configuration, so every sidecar would answer 503
           [ConfigurationRefused]
Log        error    no team is configured
"""


def test_refused_configuration_is_shown_with_the_log_and_status_1(run: Run) -> None:
    assert without_fuel(run.text("gate.wasm", status=1)) == REFUSED
    document = run.json("gate.wasm", status=1)
    assert document["start"]["status"] == "False"
    assert document["start"]["phase"] == "configure"
    assert document["exchange"] is None
    assert document["log"] == [
        {"phase": "start", "level": "error", "message": "no team is configured"}
    ]


TRAPPED = """\
Start      the module starts with this configuration
Request    not forwarded to the service
Response   503: the module failed (wasm_fail_stream)
           ! proxy_on_request_headers failed: it reached an unreachable
             instruction, as programs do that panic or abort
             in function 2 < function 3
             :status: 503
             date: Thu, 01 Jan 2026 00:00:00 GMT
             server: envoy
"""


def test_trap_is_shown_with_status_1(run: Run) -> None:
    Path("trap.wasm").write_bytes(wat.compile_text(TRAPS))
    _, _, text = without_fuel(run.text("trap.wasm", status=1)).partition("\n")
    assert text == TRAPPED
    document = run.json("trap.wasm", status=1)
    assert document["failure"]["kind"] == "trap"
    assert document["failure"]["frames"] == ["function 2", "function 3"]
    assert document["exchange"]["status"] == 503


def test_endless_loop_ends_with_status_1(run: Run) -> None:
    Path("loop.wasm").write_bytes(wat.compile_text(LOOPS))
    assert "fuel" in run.text("loop.wasm", status=1)


def test_json_has_the_changes(run: Run) -> None:
    document = run.json("gate.wasm", "--config", "blue", "-H", "x-user: é", "--response-body", "hi")
    headers = document["exchange"]["request"]["headers"]
    assert {"name": "x-team", "value": "blue", "change": "added", "was": None} in headers
    assert {"name": "x-user", "value": "é", "change": "same", "was": None} in headers
    assert document["exchange"]["response"]["body"] == "hi"
    assert document["exchange"]["response"]["bodyChanged"] is False
    assert document["metrics"] == [
        {"type": "counter", "name": "gate_denied", "value": 0, "recorded": None}
    ]
    assert list(document) == [
        *("module", "start", "exchange", "connection", "failure", "log"),
        *("metrics", "callouts", "asked", "fuel", "envoy"),
    ]


def test_equal_commands_print_equal_results(run: Run) -> None:
    arguments = ("gate.wasm", "--config", "blue", "-H", "x-user: a", "--json")
    assert run.text(*arguments) == run.text(*arguments)


def test_tcp_connection_is_shown_and_the_log_is_printable(run: Run) -> None:
    Path("tcp.wasm").write_bytes(wat.compile_text(TCP))
    text = run.text("tcp.wasm", "--tcp", "--body", "hello\n", "--response-body", "a\nb")
    assert "Connection passed to the service" in text
    assert "To service 6 B\n           " in text
    assert "| hello" in text
    assert "Log        warning  \\x1b[31mred\\nline" in text
    document = run.json("tcp.wasm", "--tcp", "--body", "hello")
    assert (document["connection"]["toService"], document["exchange"]) == ("hello", None)


@pytest.mark.parametrize(
    ("value", "team"),
    [
        ("blue", "blue"),
        ('{"team": "blue"}', '{"team": "blue"}'),
        ("@team.json", "of a file"),
        ("team.json", "of a file"),
        ("a.b or c.json", "a.b or c.json"),
    ],
)
def test_configuration_is_text_or_a_file(run: Run, value: str, team: str) -> None:
    Path("team.json").write_text("of a file")
    document = run.json("gate.wasm", "--config", value, "-H", "x-user: a")
    found = {each["name"]: each["value"] for each in document["exchange"]["request"]["headers"]}
    assert found["x-team"] == team


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a module (FILE|REF), or an AutoWasm with -f"),
        (["absent.wasm"], "absent.wasm: no such file"),
        (["gate.wasm", "--config", "absent.json"], "--config absent.json: no such file"),
        (["gate.wasm", "--config", "@absent"], "--config absent: No such file"),
        (["gate.wasm", "--config", "./x"], "--config ./x: no such file"),
        (["gate.wasm", "--env", "A"], "--env: must be NAME=VALUE"),
        (["gate.wasm", "-H", "a"], "--header: must be 'NAME: VALUE'"),
        (["gate.wasm", "--request", "GET x"], "--request: must be"),
        (["gate.wasm", "--call", "a"], "--call: must be CLUSTER=FILE"),
        (["gate.wasm", "--call", "a=absent"], "--call absent: No such file"),
        (["gate.wasm", "--property", "a"], "--property: must be PATH=VALUE"),
        (["gate.wasm", "--body", "@absent"], "--body absent: No such file"),
        (["gate.wasm", "--name", "a"], "--name chooses an AutoWasm"),
        (["-", "--body", "@-"], "FILE and --body: only one can be read from standard input"),
        (["gate.wasm", "--tcp", "-H", "a: b"], "--header: a TCP connection (--tcp) has none"),
        (["-f", "absent.yaml"], "-f absent.yaml: No such file"),
    ],
)
def test_wrong_arguments_are_usage_errors(run: Run, arguments: list[str], message: str) -> None:
    assert message in run.error(*arguments)


def test_module_that_envoy_would_not_load_is_refused(run: Run) -> None:
    Path("no.wasm").write_bytes(wat.compile_text("(module)"))
    text = run.text("no.wasm", status=1)
    assert "Start      refused:" in text
    assert "[AbiMissing]" in text
    assert run.json("no.wasm", status=1)["start"]["reason"] == "AbiMissing"


def test_autowasm_gives_the_filter_the_same_input_as_envoy(run: Run) -> None:
    Path("a.yaml").write_text(
        AUTOWASM.format(name="gate", config="{b: 1.0, a: x}", strategy="FAIL_CLOSE")
    )
    document = run.json("-f", "a.yaml", "gate.wasm", "-H", "x-user: a")
    found = {each["name"]: each["value"] for each in document["exchange"]["request"]["headers"]}
    assert found["x-team"] == '{"a":"x","b":1}'
    document = run.json("-f", "a.yaml", "gate.wasm", "-H", "x-user: a", "--config", "red")
    found = {each["name"]: each["value"] for each in document["exchange"]["request"]["headers"]}
    assert found["x-team"] == "red"


def test_one_of_several_autowasms_is_chosen_by_name(run: Run) -> None:
    texts = [
        AUTOWASM.format(name=name, config=f'"{config}"', strategy="FAIL_OPEN")
        for name, config in (("one", ""), ("two", "blue"))
    ]
    Path("a.yaml").write_text("---".join(texts))
    message = run.error("-f", "a.yaml", "gate.wasm")
    assert "the file has several; choose one with --name: shop/one, shop/two" in message
    text = run.text("-f", "a.yaml", "--name", "one", "gate.wasm", status=1)
    assert "so every sidecar would pass requests without" in text
    run.text("-f", "a.yaml", "--name", "shop/two", "gate.wasm")
    assert "has 0 of this name" in run.error("-f", "a.yaml", "--name", "three", "gate.wasm")


def test_wrong_autowasm_is_a_usage_error_with_its_field(run: Run) -> None:
    Path("a.yaml").write_text(AUTOWASM.format(name="a", config="1", strategy="FAIL_CLOSE"))
    assert "spec.filter.pluginConfig" in run.error("-f", "a.yaml", "gate.wasm")
    Path("a.yaml").write_text("kind: Pod\n")
    assert "contains no AutoWasm" in run.error("-f", "a.yaml", "gate.wasm")


class _Terminal:
    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "variables", "coloured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    is_terminal: bool,
    variables: dict[str, str],
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert stdio.is_coloured(_Terminal(is_terminal)) is coloured  # type: ignore[arg-type]


def test_colours_change_nothing_but_the_colours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("gate.wasm", "--config", "blue", "-H", "x-user: alice")
    plain = run.text(*arguments)
    monkeypatch.setattr("autowasm.cli.run.is_coloured", lambda _stream: True)
    coloured = run.text(*arguments)
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain
    assert "\x1b[32m+ x-team: blue\x1b[0m" in coloured


def test_nothing_leaves_the_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run.text("gate.wasm", "--config", "blue")
