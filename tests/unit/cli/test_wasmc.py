"""`wasmc` without a registry: start-up, imports, usage errors."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from autowasm.cli import pushpull, version
from autowasm.cli import wasmc as command
from autowasm.net import hosts
from tests.parts import wasmer, wat
from tests.parts.clients import Client

FORBIDDEN_ALWAYS = (
    "kubernetes_asyncio",
    "aiohttp.web",
    "autowasm.kube",
    "autowasm.controller",
    "autowasm.server",
    "autowasm.standalone",
    "autowasm.runtime",
)
FORBIDDEN_FOR_HELP = (
    *FORBIDDEN_ALWAYS,
    "oras",
    "requests",
    "aiohttp",
    "wasmtime",
    "structlog",
    "asyncio",
    "msgspec",
)

IMPORTS = """
import json, sys
from autowasm.cli import wasmc
try:
    wasmc.main(json.loads(sys.argv[1]))
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)))
"""


def imported(*arguments: str, cwd: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, json.dumps(arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([command, "--help"] for command in ("push", "pull", "inspect", "run", "test", "plan")),
        [],
    ],
)
def test_help_imports_next_to_nothing(tmp_path: Path, arguments: list[str]) -> None:
    modules = imported(*arguments, cwd=tmp_path)
    assert modules.isdisjoint(FORBIDDEN_FOR_HELP)


@pytest.mark.parametrize(
    "arguments",
    [
        ["push", "127.0.0.1:1/x", "-f", "m.wasm", "--force"],
        ["pull", "127.0.0.1:1/x"],
        ["inspect", "127.0.0.1:1/x"],
    ],
)
def test_commands_import_no_kubernetes_and_no_server(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "m.wasm").write_bytes(b"")
    modules = imported(*arguments, cwd=tmp_path)
    assert "oras" in modules, "it got as far as the registry"
    assert modules.isdisjoint(FORBIDDEN_ALWAYS)


@pytest.mark.parametrize("command", ["run", "test"])
def test_running_a_filter_imports_neither_a_cluster_nor_a_server(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "filter.wasm").write_bytes(wat.header_filter("world"))
    suite = {"defaults": {"module": "filter.wasm"}, "cases": [{"name": "a"}]}
    (tmp_path / "suite.json").write_text(json.dumps(suite))
    argument = {"run": "filter.wasm", "test": "suite.json"}[command]
    modules = imported(command, argument, cwd=tmp_path)
    assert "wasmtime" in modules, "it got as far as the filter"
    assert modules.isdisjoint(FORBIDDEN_ALWAYS)


async def test_force_does_not_push_an_irregular_or_too_large_file(
    wasmc: Client, tmp_path: Path
) -> None:
    with (tmp_path / "large.wasm").open("wb") as file:
        file.truncate(300 * 1024 * 1024)
    for name, message in (("/dev/zero", "not a regular file"), ("large.wasm", "300 MiB")):
        done = await wasmc.run("push", "127.0.0.1:1/x", "-f", name, "--force", check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr


async def test_version(wasmc: Client) -> None:
    expected = await asyncio.to_thread(version.describe, "wasmc")
    done = await wasmc.run("--version")
    assert (done.returncode, done.stdout) == (0, f"{expected}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["push"], "REF"),
        (["push", "r.example/x"], "-f FILE"),
        (["push", "r.example/x", "-f", "absent.wasm"], "-f absent.wasm: No such file"),
        (["push", "r.example/x", "-f", "."], "-f .: Is a directory"),
        (["push", "https://r.example/x", "-f", "m.wasm"], "without a scheme"),
        (["push", "r.example/UPPER", "-f", "m.wasm"], "not a repository name"),
        (["push", f"r.example/x@sha256:{'0' * 64}", "-f", "m.wasm"], "push to a tag"),
        (["push", "r.example/x", "-f", "m.wasm", "--format", "zip"], "invalid choice"),
        (["push", "r.example/x", "-f", "m.wasm", "--password", "p"], "--password"),
        (["push", "", "-f", "m.wasm"], "the image reference is empty"),
        (["push", "r.example/x", "-f", "m.wasm", "--annotation", "x"], "KEY=VALUE"),
        (["push", "r.example/x", "-f", "m.wasm", "--annotation", "=x"], "KEY=VALUE"),
        (["push", "r.example/x", "-f", "m.wasm", *(["--annotation", "a=1"] * 2)], "twice"),
        (["push", "r.example/x", "-f", "m.wasm", "--annotation", f"a={'x' * 70_000}"], "65536"),
        (
            ["push", "r.example/x", "-f", "m.wasm", "--annotation", "module.wasm.runtime/type=x"],
            "cannot be given",
        ),
        (["push", "r.example/x", "-f", "m.wasm", "--annotation", "\udcff=x"], "is not valid text"),
        (["inspect", "m.wasm", "--envoy-version", "new"], "--envoy-version"),
        (["inspect", "x" * 300], "longer than 255 characters"),
        (["plan", "-f", "absent.yaml", "--offline"], "-f absent.yaml: No such file"),
        (
            ["plan", "-f", "-", "--offline", "--username", "u", "--password-stdin"],
            "only one can be read from standard input",
        ),
        (["inspect"], "REF"),
        (["inspect", ""], "the image reference is empty"),
        (["inspect", "absent.wasm"], "no such file"),
        (["inspect", "./absent"], "No such file"),
        (["inspect", "/dev/zero"], "not a regular file"),
        (["inspect", "./taken"], "Is a directory"),
        (["inspect", "m.wasm", "--require", "docker"], "invalid choice"),
        (["pull", "r.example/x", "--bogus"], "--bogus"),
        (["pull", "r.example/x", "-o", "m.wasm/x.wasm"], "m.wasm is not a folder"),
        (["pull", "r.example/x", "-o", "m.wasm/"], "m.wasm is not a folder"),
        (["pull", "r.example/x", "-o", "taken"], "is a folder"),
        (["pull", "r.example/x", "--ca-file", "absent.pem"], "--ca-file absent.pem: No such file"),
        (["pull", "r.example/x", "--ca-file", "m.wasm"], "--ca-file m.wasm: not a PEM file"),
        (["pull", "r.example/x", "--plain-http", "--insecure"], "not allowed with"),
        (["pull", "r.example/x", "--username", "u"], "--password-stdin"),
        (["pull", "r.example/x", "--password-stdin"], "--username"),
        (["pull", "r.example/x", "--username", "u", "--password-stdin"], "is empty"),
        (["pull", "r.example/x", "--username", "a:b", "--password-stdin"], "colon"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
async def test_wrong_usage_ends_with_2_and_one_sentence(
    wasmc: Client, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "m.wasm").write_bytes(b"\0asm")
    (tmp_path / "taken" / "filter.wasm").mkdir(parents=True)
    done = await wasmc.run(*arguments, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("wasmc: error: ")
    assert message in last


async def test_a_password_that_is_too_long_is_refused(wasmc: Client) -> None:
    login = ("--username", "u", "--password-stdin")
    done = await wasmc.run("pull", "r.example/x", *login, stdin=b"p" * 100_000, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--password-stdin: longer than" in done.stderr
    assert "ppp" not in done.stderr


def _inspect(standard_input: int, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autowasm.cli.wasmc", "inspect", "-"],
        stdin=standard_input,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=60,
        check=False,
    )


def test_a_terminal_is_not_read_as_a_module(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    try:
        done = _inspect(follower, tmp_path)
    finally:
        os.close(leader)
        os.close(follower)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a terminal; pipe a module into the command" in done.stderr


def test_standard_input_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        done = _inspect(writing, tmp_path)
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.returncode, done.stdout) == (2, "")
    assert "-: Bad file descriptor" in done.stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "/some/file"), "/some/file: Permission denied"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (
            ZeroDivisionError("division"),
            "ZeroDivisionError: division (this is a bug; WASMC_DEBUG=1",
        ),
    ],
)
def test_an_error_of_any_kind_is_one_line_and_status_1(
    error: Exception,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(pushpull, "run", fail)
    monkeypatch.delenv("WASMC_DEBUG", raising=False)
    assert command.main(["pull", "r.example/x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wasmc: error: ")
    assert says in line


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.1.2.3", True),
        ("[::1]:5000", True),
        ("[::1]", True),
        ("r.example", False),
        ("localhost.evil.example:5000", False),
        ("10.0.0.1:5000", False),
        ("[fe80::1]:5000", False),
        ("docker.io", False),
    ],
)
def test_only_this_machine_is_taken_for_plain_http(host: str, loopback: bool) -> None:
    assert hosts.is_loopback(host) is loopback


async def test_a_credential_store_that_does_not_work_is_a_warning_in_one_line(
    tmp_path: Path,
) -> None:
    wasmc = wasmer.wasmc(tmp_path, PATH="")
    (tmp_path / ".docker" / "config.json").write_text('{"credsStore": "absent-here"}')
    done = await wasmc.run("pull", "127.0.0.1:1/x", check=False)
    warning, *rest = done.stderr.splitlines()
    assert warning.startswith("wasmc: warning: docker's credential store skipped: ")
    assert "docker-credential-absent-here" in warning
    assert [line.partition(": ")[0] for line in rest] == ["wasmc"]


async def test_push_warns_of_unchecked_parts_before_the_upload(
    wasmc: Client, tmp_path: Path
) -> None:
    text = """(module (memory (export "memory") 1)
    (func (export "proxy_abi_version_0_2_1"))
    (func (export "malloc") (param i32) (result i32) (i32.const 0))
    (tag $t) (func (try (do (throw $t)) (catch_all))))"""
    (tmp_path / "m.wasm").write_bytes(wat.compile_text(text))
    for flags, count in (((), 1), (("--quiet",), 0)):
        done = await wasmc.run("push", "127.0.0.1:1/x", "-f", "m.wasm", *flags, check=False)
        warning = "wasmc: warning: 1 of 3 function bodies were not validated"
        assert done.stderr.count(warning) == count, done.stderr
        assert done.returncode == 1, "there is no registry"
