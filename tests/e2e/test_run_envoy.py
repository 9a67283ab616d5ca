"""`wasmc run --engine envoy`: the sandbox behaves like each Envoy, and the output reports differences."""

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from autowasm.cli import wasmc
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.protocol import LogLevel
from autowasm.trial import envoyrun
from autowasm.trial.envoyrun import EnvoyFailed, Setup
from tests.e2e import trialfolder
from tests.parts import provision, pypi


@pytest.fixture(params=pypi.ENVOY_VERSIONS)
def envoy(request: pytest.FixtureRequest) -> Path:
    return provision.envoy(request.param)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trialfolder.enter(tmp_path, monkeypatch, ("callout", "fail-on-request", "buffer-body", "echo"))


CASES: dict[str, tuple[int, Sequence[str]]] = {
    "passes": (0, ("gate.wasm", "--config", "blue", "-H", "x-user: a", "--request", "/x?y")),
    "denied": (0, ("gate.wasm", "--config", "blue")),
    "refused": (1, ("gate.wasm",)),
    "bytes": (0, ("gate.wasm", "--config", "@bytes", "-H", "x-user: a")),
    "trap in the request": (1, ("fail-on-request.wasm", "-H", "x-fail: request")),
    "trap in the response": (1, ("fail-on-request.wasm", "-H", "x-fail: response")),
    "body": (0, ("buffer-body.wasm", "--request", "POST /", "--body", "hello", "--response-body", "x")),
    "head": (0, ("gate.wasm", "--config", "b", "--request", "HEAD /", "-H", "x-user: a", "--response-body", "x")),
    "no content": (0, ("gate.wasm", "--config", "b", "-H", "x-user: a", "--response-status", "204")),
    "environment": (0, ("echo.wasm", "--env", "A=b", "--root-id", "r", "-H", "x-echo: any")),
    "callout": (0, ("callout.wasm", "--config", "auth /check", "--call", "auth=auth.http")),
    "callout that breaks": (0, ("callout.wasm", "--config", "auth /", "--call", "auth=broken.yaml")),
    "callout to no cluster": (0, ("callout.wasm", "--config", "auth /")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_envoy_does_the_same(
    name: str, envoy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bytes").write_bytes(b"bl\xc3\xa9ue")
    (tmp_path / "auth.http").write_text("HTTP/1.1 403 Forbidden\nx-a: b\n\nno")
    (tmp_path / "broken.yaml").write_text("broken: true\n")
    status, arguments = CASES[name]
    before = {path.name for path in tmp_path.iterdir()}
    found = wasmc.main(["run", *arguments, "--engine", f"envoy={envoy}", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["envoy"]["differences"] == []
    assert found == status
    assert {path.name for path in tmp_path.iterdir()} == before, "no file is left"


def test_difference_from_envoy_is_shown_with_status_1(
    envoy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wasmc.main(["run", "client.wasm", "--engine", f"envoy={envoy}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("Envoy"))
    assert lines[at].endswith("behaves differently:")
    assert lines[at + 1 : at + 3] == [
        "             response header x-client:",
        "           - sandbox: 127.0.0.1:50000",
    ]
    assert lines[at + 3].startswith("           + Envoy: 127.0.0.1:")
    assert len(lines) == at + 4


def test_broken_callout_is_the_503_that_envoy_reports_for_a_broken_connection(
    envoy: Path,
) -> None:
    """In both engines the test defines the callout's answer: here the cluster really breaks the connection."""

    async def broken() -> tuple[str, ...]:
        async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(close, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            observed = await _observed(envoy, port)
        (passed,) = observed.exchanges
        assert passed.request is not None
        return tuple(value for name, value in passed.request.headers if name == "x-callout")

    assert asyncio.run(broken()) == ("503",)


async def _observed(envoy: Path, port: int) -> envoyrun.Observed:
    module = Path("callout.wasm").read_bytes()
    plugin = Plugin(name="wasmc", vm_id="wasmc", configuration=b"auth /")
    setup = Setup(module, plugin, [(Request(), Response(200))], {}, LogLevel.INFO)
    plain = envoyrun.bootstrap

    def with_cluster(*arguments: object, **options: float) -> dict[str, object]:
        made = plain(*arguments, **options)  # type: ignore[arg-type]
        clusters = made["static_resources"]["clusters"]
        address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        load = {"cluster_name": "auth", "endpoints": endpoints}
        clusters.append({**clusters[0], "name": "auth", "load_assignment": load})
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envoyrun, "bootstrap", with_cluster)
        return await envoyrun.run(envoy, "1.36.4", setup)


@pytest.mark.parametrize("stubborn", [False, True])
async def test_envoy_that_never_listens_is_ended_at_the_deadline(
    stubborn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envoyrun, "START_SECONDS", 1.0)
    monkeypatch.setattr(envoyrun, "_STOP_SECONDS", 0.3)
    program = tmp_path / "envoy"
    trap = "trap '' TERM\n" if stubborn else ""
    program.write_text(f"#!/bin/sh\n{trap}echo $$ > {tmp_path}/pid\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    setup = Setup(b"", Plugin(), [(Request(), Response())], {}, LogLevel.INFO)
    with pytest.raises(EnvoyFailed, match="Envoy was not listening after 1 s"):
        await envoyrun.run(program, "1.36.4", setup)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_envoy_that_cannot_run_is_not_the_filters_fault(tmp_path: Path) -> None:
    program = tmp_path / "envoy"
    program.write_text("#!/bin/sh\necho '@@1|critical|no more memory'\n")
    program.chmod(0o755)
    setup = Setup(b"", Plugin(), [(Request(), Response())], {}, LogLevel.INFO)
    with pytest.raises(EnvoyFailed, match="Envoy does not start: no more memory"):
        await envoyrun.run(program, "1.36.4", setup)
    with pytest.raises(EnvoyFailed, match=r"did not report a release of Envoy$"):
        await envoyrun.version_of(program)
    program.write_text("#!/bin/sh\necho Trace >&2\necho 'a library is missing' >&2\nexit 1\n")
    with pytest.raises(
        EnvoyFailed, match="did not report a release of Envoy: a library is missing"
    ):
        await envoyrun.version_of(program)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "v8"), "--engine: must be sandbox, envoy or envoy=PATH, not 'v8'"),
        (("--engine", "envoy="), "--engine: must be sandbox, envoy or envoy=PATH"),
        (("--engine", "envoy=./absent"), "--engine: ./absent: no such program"),
        (("--engine", "envoy=/bin/true", "--tcp"), "--tcp: is possible in the sandbox only"),
        (
            ("--engine", "envoy=/bin/true", "--property", "a=b"),
            "--property: is possible in the sandbox only",
        ),
        (
            ("--engine", "envoy=/bin/true", "--call", "a=grpc.yaml"),
            "--call a: --engine envoy cannot answer gRPC",
        ),
    ],
)
def test_wrong_engine_is_a_usage_error(
    arguments: Sequence[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grpc.yaml").write_text("grpc: {}\n")
    assert wasmc.main(["run", "gate.wasm", *arguments]) == 2
    assert message in capsys.readouterr().err
