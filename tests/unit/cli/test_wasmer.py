"""Messages for wrong arguments."""

import os
import subprocess
import sys

import pytest

from autowasm.cli import version, wasmer


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "MODE"),
        (["standalne"], "standalne"),
        (["standalone"], "--config"),
        (["standalone", "--config", "c"], "--envoy-dir"),
        (["standalone", "--config", "c", "--envoy-dir", "e", "--workers", "none"], "--workers"),
        (["standalone", "--worker-count", "3"], "--worker-count"),
        (["controller", "--listen", "8081"], "--listen"),
        (["controller", "--allow-cidr", "10.0.0.0/33"], "--allow-cidr"),
    ],
)
def test_usage_error_ends_with_2_and_names_the_flag(
    arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        wasmer.main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert not output.out
    last = output.err.strip().splitlines()[-1]
    assert last.startswith("wasmer: error: ") or last.startswith("wasmer standalone: error: ")
    assert names in last


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        wasmer.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{version.describe('wasmer')}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["standalone", "--help"], ["standalone"]])
def test_help_and_usage_errors_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from autowasm.cli import wasmer\n"
        "try:\n"
        f"    wasmer.main({arguments!r})\n"
        "except SystemExit as done:\n"
        "    heavy = {'aiohttp', 'oras', 'requests', 'wasmtime', 'kubernetes_asyncio'} & set(sys.modules)\n"
        "    sys.exit(str(sorted(heavy)) if heavy else done.code)\n"
    )
    environment = {name: text for name, text in os.environ.items() if not name.startswith("WASMER")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, env=environment
    )
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr


def test_module_runs_as_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autowasm", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.startswith("wasmer ")
