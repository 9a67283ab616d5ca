"""`wasmc` and `wasmer` at a real terminal, and the same in a pipe: width, colours, progress, Ctrl-C."""

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts import ports, terminal, wasmer, wat
from tests.parts.envoy import listeners_yaml
from tests.unit.cli import gate

LAYER = 10_000_000
WIDTHS = (40, 80, 160)


@pytest.fixture
def module(tmp_path: Path) -> str:
    write_files(tmp_path)
    return "gate.wasm"


def write_files(home: Path) -> None:
    """The modules, and the files that `COMMANDS` name."""
    (home / "gate.wasm").write_bytes(gate.module())
    (home / "hello.wasm").write_bytes(wat.header_filter("world"))
    (home / "suite.yaml").write_text(json.dumps(SUITE))
    (home / "wrong.yaml").write_text(json.dumps(WRONG))


SUITE = {
    "defaults": {"module": "gate.wasm", "config": "blue"},
    "cases": [
        {
            "name": "a request that says who it is passes, with a long name",
            "request": {"headers": {"x-user": "alice"}},
            "expect": {"response": {"status": 201, "body": "a body that is not there " * 4}},
        }
    ],
}
WRONG = {
    "apiVersion": "wasm.tcm.io/v1alpha1",
    "kind": "AutoWasm",
    "metadata": {"name": "details"},
    "spec": {"url": "oci://a.io/b:v1", "selector": "app=details", "phase": "AUTHN"},
}


COMMANDS = (
    ("inspect", "gate.wasm", "--compat"),
    ("inspect", "hello.wasm", "--require", "kwctl"),
    ("run", "gate.wasm", "--config", "blue", "-H", "x-user: alice"),
    ("run", "gate.wasm"),
    ("plan", "-f", "plan.yaml", "--offline"),
    ("plan", "wrong.yaml", "--offline"),
    ("test", "suite.yaml"),
)


async def shown(
    home: Path, *arguments: str, columns: int = 80, **environment: str
) -> tuple[str, int]:
    """What a person sees, and the exit status."""
    variables = {"HOME": str(home), **environment}
    return await terminal.shown(
        "wasmc", *arguments, columns=columns, cwd=home, environment=variables
    )


async def piped(home: Path, *arguments: str, **environment: str) -> str:
    """What a file gets."""
    client = wasmer.wasmc(home, **{"TERM": "xterm", **environment})
    return (await client.run(*arguments, check=False)).stdout


def write_plan(home: Path) -> None:
    document = {
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "metadata": {"name": "details-with-quite-a-long-name"},
        "spec": {
            "filter": {"source": {"registry": {"image": "127.0.0.1:1/team/filter:v1"}}},
            "selector": {"matchLabels": {"app": "details"}},
        },
    }
    (home / "plan.yaml").write_text(json.dumps(document))


Displayed = Callable[[tuple[str, ...], int], Awaitable[tuple[str, int]]]


@pytest.fixture(scope="module")
def displayed(tmp_path_factory: pytest.TempPathFactory) -> Displayed:
    """What a person sees of one of `COMMANDS` at a width, and the exit status; run once, for all tests."""
    home = tmp_path_factory.mktemp("home")
    write_files(home)
    write_plan(home)
    known: dict[tuple[tuple[str, ...], int], tuple[str, int]] = {}

    async def display(command: tuple[str, ...], columns: int) -> tuple[str, int]:
        if (command, columns) not in known:
            known[command, columns] = await shown(home, *command, columns=columns)
        return known[command, columns]

    return display


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_no_line_is_wider_than_the_terminal(
    displayed: Displayed, command: tuple[str, ...], columns: int
) -> None:
    text, status = await displayed(command, columns)
    assert status in {0, 1}
    lines = terminal.plain(text).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_a_pipe_has_no_line_breaks_in_an_item_and_no_colours(
    displayed: Displayed, tmp_path: Path, module: str, command: tuple[str, ...]
) -> None:
    write_plan(tmp_path)
    text = await piped(tmp_path, *command)
    assert "\x1b" not in text
    at_80 = terminal.plain((await displayed(command, 80))[0])
    assert len(text.splitlines()) <= len(at_80.splitlines())
    at_40 = terminal.plain((await displayed(command, 40))[0])
    assert len(text.splitlines()) < len(at_40.splitlines()), "at 40 columns lines are broken"


async def test_digests_in_a_pipe_are_whole(tmp_path: Path, module: str) -> None:
    digest = hashlib.sha256((tmp_path / module).read_bytes()).hexdigest()
    assert digest in await piped(tmp_path, "run", module)
    assert digest in await piped(tmp_path, "inspect", module)


@pytest.mark.parametrize(
    ("variables", "at_a_terminal", "in_a_pipe"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"CLICOLOR_FORCE": "1"}, True, True),
        ({"CLICOLOR_FORCE": "0"}, True, False),
        ({"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "CLICOLOR_FORCE": "1"}, True, True),
    ],
)
async def test_colours_are_as_the_environment_wants_them(
    tmp_path: Path, module: str, variables: dict[str, str], at_a_terminal: bool, in_a_pipe: bool
) -> None:
    text, _ = await shown(tmp_path, "run", module, **variables)
    assert ("\x1b[" in text) is at_a_terminal
    assert ("\x1b[" in await piped(tmp_path, "run", module, **variables)) is in_a_pipe


def _dripping() -> ScriptedServer:
    """A registry with an endless layer."""

    async def script(exchange: Exchange) -> None:
        if "/blobs/" in exchange.request.target:
            await exchange.head(200, {"Content-Length": str(LAYER)})
            await exchange.drip(bytes(10_000), every=0.05)
        else:
            await exchange.send(body=_manifest())

    return ScriptedServer(script)


def _manifest() -> bytes:
    def described(size: int, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(bytes(size)).hexdigest()
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}

    document = {
        "schemaVersion": 2,
        "config": described(2, "application/vnd.module.wasm.config.v1+json"),
        "layers": [described(LAYER, "application/vnd.module.wasm.content.layer.v1+wasm")],
    }
    return json.dumps(document).encode()


@pytest.mark.parametrize("columns", [10, 24, 40, 80, 160])
async def test_progress_is_one_line_at_any_width_and_ctrl_c_names_the_awaited_registry(
    tmp_path: Path, columns: int
) -> None:
    async with _dripping() as server:
        host = server.host
        command = [wasmer.program("wasmc"), "pull", f"{host}/team/filter:v1"]

        def pull() -> tuple[str, str, int]:
            with terminal.running(
                command, columns=columns, cwd=tmp_path, environment={"HOME": str(tmp_path)}
            ) as screen:
                pattern = r"Pulling[^\r]*[1-9].*\r.*Pulling" if columns > 10 else "Pulling"
                progress = screen.read_until(pattern)
                screen.press(terminal.INTERRUPT)
                status = screen.wait()
                return progress, screen.text, status

        progress, text, status = await asyncio.to_thread(pull)
    assert status == 130
    assert "\n" not in progress
    assert max(map(len, terminal.drawn(progress))) < columns
    assert f"wasmc: stopping: waiting for the registry {host}; Ctrl-C again" in text
    assert [path.name for path in tmp_path.iterdir()] == []


STUBBORN = """
import asyncio
from autowasm.cli.interrupts import run_to_end, waits_for

async def work():
    with waits_for("the registry r.example"):
        print("ready", flush=True)
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass

run_to_end(work())
"""


def test_the_second_ctrl_c_exits_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUBBORN]
    with terminal.running(command, columns=80, cwd=tmp_path, environment={}) as screen:
        screen.read_until("ready")
        screen.press(terminal.INTERRUPT)
        told = screen.read_until(r"stopping: waiting for .*\n")
        assert (
            "wasmc: stopping: waiting for the registry r.example; Ctrl-C again exits at once"
            in told
        )
        assert screen.process.poll() is None
        screen.press(terminal.INTERRUPT)
        assert screen.wait() == 130


def standalone(home: Path, *flags: str) -> list[str | Path]:
    """`wasmer standalone` over the folder."""
    (home / "config").mkdir()
    (home / "template.yaml").write_text(listeners_yaml([ports.free_port()], cluster="web"))
    first, second = ports.free_ports(2)
    return [
        wasmer.program("wasmer"), "standalone", "--config", "config", "--envoy-dir", "envoy", "--cache-dir", "cache",
        "--listener-template", "template.yaml", "--listen", f"{ports.LOOPBACK}:{first}", "--admin-listen",
        f"{ports.LOOPBACK}:{second}", *flags,
    ]  # fmt: skip


@contextlib.contextmanager
def started(home: Path, *flags: str, **environment: str) -> Iterator[terminal.Terminal]:
    command = standalone(home, *flags)
    with terminal.running(command, columns=120, cwd=home, environment=environment) as screen:
        screen.read_until(r"started")
        yield screen


def test_logs_of_standalone_mode_are_lines_at_a_terminal(tmp_path: Path) -> None:
    with started(tmp_path, "--drain-delay", "1h") as screen:
        assert "\x1b[" in screen.text
        first = next(line for line in screen.text.splitlines() if "started" in line)
        assert not first.startswith("{")
        screen.press(terminal.INTERRUPT)
        told = terminal.plain(screen.read_until("interrupted.*\n"))
        assert "waits_for='1h of drain delay, then downloads under way'" in told
        assert "Ctrl-C again exits at once" in told
        screen.press(terminal.INTERRUPT)
        assert screen.wait() == 130


def test_logs_at_a_terminal_have_no_colours_if_they_are_not_wanted(tmp_path: Path) -> None:
    with started(tmp_path, "--drain-delay", "0", NO_COLOR="1") as screen:
        screen.press(terminal.INTERRUPT)
        assert screen.wait() == 0, "an orderly stop"
        assert "\x1b" not in screen.text


def test_logs_of_standalone_mode_are_json_in_a_pipe(tmp_path: Path) -> None:
    command = standalone(tmp_path, "--drain-delay", "0")
    with subprocess.Popen(
        [str(word) for word in command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            events = []
            for line in process.stderr:
                events.append(json.loads(line)["event"])
                if events[-1] == "started":
                    break
        finally:
            process.terminate()
            process.stderr.read()  # else its last lines find the pipe closed
    assert process.returncode == 0
    assert "started" in events
