"""A forked command does what the console script does: the same output, the same status, the same end."""

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.parts import preloaded, terminal, wasmer, wat


async def forked(
    words: Sequence[str], directory: Path, *, stdin: bytes = b""
) -> tuple[object, ...]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}
    command = [str(wasmer.program("wasmc")), *words]
    return await preloaded.run(
        "wasmc", command, environment=environment, directory=directory, stdin=stdin
    )


def started(words: Sequence[str], directory: Path, *, stdin: bytes = b"") -> tuple[object, ...]:
    done = subprocess.run(
        [wasmer.program("wasmc"), *words],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(directory)},
        input=stdin,
        capture_output=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (["--help"], b""),
        (["--version"], b""),
        (["push"], b""),
        (["push", "--no-such-flag"], b""),
        (["inspect", "localhost:1/x:y"], b""),
        (["push", "localhost:1/x:y", "-f", "absent.wasm"], b""),
        (["push", "localhost:1/x:y", "-f", "-"], b"no module\n" * 20_000),
        (["plan", "absent.yaml"], b""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_output_and_status_are_those_of_the_console_script(
    words: list[str], stdin: bytes, tmp_path: Path
) -> None:
    script, fork = await asyncio.gather(
        asyncio.to_thread(started, words, tmp_path, stdin=stdin),
        forked(words, tmp_path, stdin=stdin),
    )
    assert fork == script


@pytest.mark.parametrize("columns", [40, 160])
@pytest.mark.parametrize("words", [["--help"], ["inspect", "hello.wasm"], ["plan", "absent.yaml"]])
async def test_at_a_terminal_the_text_is_that_of_the_console_script(
    words: list[str], columns: int, tmp_path: Path
) -> None:
    (tmp_path / "hello.wasm").write_bytes(wat.header_filter("world"))
    environment = {"HOME": str(tmp_path)}
    fork = await terminal.shown(
        "wasmc", *words, columns=columns, cwd=tmp_path, environment=environment
    )

    def started_there() -> tuple[str, int]:
        command = [wasmer.program("wasmc"), *words]
        with terminal.running(
            command, columns=columns, cwd=tmp_path, environment=environment
        ) as screen:
            status = screen.wait()
            return screen.text, status

    assert fork == await asyncio.to_thread(started_there)


async def test_a_command_whose_task_is_cancelled_ends(tmp_path: Path) -> None:
    module = tmp_path / "module.wasm"
    os.mkfifo(module)
    running = asyncio.create_task(forked(["push", "localhost:1/x:y", "-f", str(module)], tmp_path))
    # A writer can open the pipe once the command reads it.
    end = await asyncio.wait_for(asyncio.to_thread(os.open, module, os.O_WRONLY), 60)
    try:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(BrokenPipeError):
            os.write(end, b"x")
    finally:
        os.close(end)


@pytest.mark.parametrize("name", ["PYTHONPATH", "COVERAGE_PROCESS_START"])
def test_a_command_with_interpreter_variables_is_not_forked(name: str) -> None:
    assert preloaded.fits({"PATH": "/bin"})
    assert not preloaded.fits({"PATH": "/bin", name: "x"})
