"""Processes of real parts: readiness, death, deadlines, and that nothing is left running."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.parts.process import Process, ProcessError

GUARD = 60.0
"""Seconds after which something hangs."""


def python(script: str, *, log: Path) -> Process:
    return Process("program", [sys.executable, "-u", "-c", textwrap.dedent(script)], log=log)


async def always() -> bool:
    return True


async def never() -> bool:
    return False


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_death_before_readiness_shows_the_end_of_the_log(tmp_path: Path) -> None:
    script = "for n in range(80): print('line', n)\nraise SystemExit(7)"
    process = python(script, log=tmp_path / "log")
    with pytest.raises(ProcessError) as raised:
        await process.start(ready=never)
    text = str(raised.value)
    assert "status 7" in text
    assert "line 79" in text
    assert "line 30" in text
    assert "line 29" not in text
    assert str(tmp_path / "log") in text


async def test_death_is_noticed_even_if_another_process_answers(tmp_path: Path) -> None:
    process = python("raise SystemExit(1)", log=tmp_path / "log")
    exited = asyncio.Event()

    async def another_answers() -> bool:
        while process.alive:
            await asyncio.sleep(0.01)
        exited.set()
        return True

    with pytest.raises(ProcessError, match="status 1"):
        await process.start(ready=another_answers)
    assert exited.is_set()


async def test_deadline_begins_again_while_the_start_makes_progress(tmp_path: Path) -> None:
    process = python("import time; time.sleep(60)", log=tmp_path / "log")
    begun = time.monotonic()
    steps = itertools.count()

    async def after_the_timeout() -> bool:
        return time.monotonic() - begun > 2.5

    async with process:
        await process.start(ready=after_the_timeout, timeout=2, progress=lambda: next(steps))
        assert process.alive
    with pytest.raises(ProcessError, match=r"not ready after 0\.1 s without progress"):
        await process.start(ready=never, timeout=0.1, progress=lambda: "the same")


async def test_one_that_never_gets_ready_is_ended_at_the_deadline(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = python("print('waiting'); import time; time.sleep(600)", log=log)

    async def not_yet() -> bool:
        # It blocks the loop, so that the deadline cannot pass before the program has printed.
        hanging = time.monotonic() + GUARD
        while "waiting" not in log.read_text() and time.monotonic() < hanging:
            time.sleep(0.01)  # noqa: ASYNC251
        return False

    with pytest.raises(ProcessError, match=r"not ready after 0\.1 s") as raised:
        await process.start(ready=not_yet, timeout=0.1)
    assert "waiting" in str(raised.value)
    assert gone(process.pid)


async def test_a_taken_port_is_distinguished_from_other_deaths(tmp_path: Path) -> None:
    process = python(
        "raise SystemExit('listen tcp: bind: Address already in use')", log=tmp_path / "log"
    )
    with pytest.raises(ProcessError) as raised:
        await process.start(ready=never)
    assert raised.value.port_taken


async def test_it_is_gone_after_the_context_and_can_start_again(tmp_path: Path) -> None:
    process = python("import time; time.sleep(600)", log=tmp_path / "log")
    async with process:
        await process.start(ready=always)
        first = process.pid
        await process.stop()
        assert gone(first)
        assert process.returncode == -signal.SIGTERM
        await process.start(ready=always)
        second = process.pid
        assert process.alive
    assert gone(second)


async def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf")
        time.sleep(600)
    """
    process = python(script, log=tmp_path / "log")

    async def deaf() -> bool:
        return "deaf" in await process.tail()

    await process.start(ready=deaf)
    await process.stop(timeout=0.2)
    assert process.returncode == -signal.SIGKILL


async def test_it_dies_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from pathlib import Path
        from tests.parts.process import Process

        async def main():
            process = Process("p", [sys.executable, "-c", "import time; time.sleep(600)"], log=Path(sys.argv[1]))
            async def ready():
                return True
            await process.start(ready=ready)
            print(process.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """
    )
    root = Path(__file__).parents[3]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, tmp_path / "log"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=GUARD,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    deadline = time.monotonic() + GUARD
    while not gone(pid) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert gone(pid)
