"""A forked wasmer is a process as a started one: session, signals, status, and its end with the test run."""

import asyncio
import os
import selectors
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.parts import envoy, wasmer
from tests.parts.process import ProcessError

ROOT = Path(__file__).parents[3]
TEMPLATE = envoy.listeners_yaml([1], cluster="web")


def field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)[name]


@pytest.mark.parametrize("fork", [True, False], ids=["forked", "started"])
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9), (signal.SIGUSR1, -10)],
)
async def test_signals_end_it_with_the_same_status(
    number: signal.Signals, status: int, fork: bool, tmp_path: Path
) -> None:
    async with wasmer.standalone(tmp_path, template=TEMPLATE, fork=fork) as server:
        pid = server.process.pid
        assert os.getsid(pid) == os.getpgid(pid) == pid
        ended = asyncio.create_task(server.process.wait())
        os.kill(pid, number)
        assert await asyncio.wait_for(ended, 60) == status
        # The next one has the same ports and directories.
        await server.start()
        assert server.process.pid != pid


async def test_the_server_that_forks_has_one_thread(tmp_path: Path) -> None:
    async with wasmer.standalone(tmp_path, template=TEMPLATE) as server:
        assert field(int(field(server.process.pid, "PPid")), "Threads") == "1"


async def test_an_end_before_readiness_shows_the_message(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match=r"status 2\b[^$]*--no-such-flag"):
        async with wasmer.standalone(tmp_path, template=TEMPLATE, arguments=["--no-such-flag"]):
            pass


def test_it_dies_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from pathlib import Path
        from tests.integration.parts.test_forked_wasmer import TEMPLATE
        from tests.parts import wasmer

        async def main():
            async with wasmer.standalone(Path(sys.argv[1]), template=TEMPLATE) as server:
                print(server.process.pid, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    try:
        wasmers = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return
    with selectors.DefaultSelector() as ended:
        ended.register(wasmers, selectors.EVENT_READ)
        assert ended.select(60)
    os.close(wasmers)
