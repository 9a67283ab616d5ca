"""Children that hang, crash, fill memory, send false or too many answers: wasmer gets a result within its limits, and no process is left."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import cast

import pytest

from autowasm.limits import MIB, PreflightLimits
from autowasm.preflight import messages
from autowasm.preflight.messages import NoVerdictReason
from autowasm.preflight.processes import ForkServer, Result
from autowasm.preflight.verdicts import NoVerdict
from autowasm.telemetry.metrics import Metrics
from tests.fakes import forkserver
from tests.fakes.children import MISBEHAVE, UNREAD
from tests.fakes.forkserver import alive, children_of, until

LIMITS = PreflightLimits(restart_base=0.01, answer_bytes=64 * 1024)
LONG = 60.0


@pytest.fixture
async def server(metrics: Metrics) -> AsyncIterator[ForkServer]:
    async with forkserver.running(LIMITS, metrics) as server:
        yield server


async def ask(
    server: ForkServer, what: str, *, seconds: float = LONG, resident: int = 256 * MIB
) -> Result:
    return await server.execute(
        MISBEHAVE, (), request=what.encode(), seconds=seconds, resident=resident
    )


async def child_of(server: ForkServer) -> int:
    """The pid of the only child, once it runs."""
    await until(lambda: server.pid is not None and len(children_of(server.pid)) == 1)
    return children_of(server.pid).pop()


async def test_an_answer_comes_with_the_end_of_the_child(server: ForkServer) -> None:
    result = await ask(server, "echo")
    assert (result.ended.status, result.ended.cause) == (0, "")
    assert not alive(json.loads(result.answer or b""))
    assert not children_of(server.pid)


@pytest.mark.parametrize("what", ["wait_forever", "burn", "say_and_wait", "hang_up_and_wait"])
async def test_a_child_that_hangs_is_killed_at_its_deadline(server: ForkServer, what: str) -> None:
    result = await ask(server, what, seconds=0.3)
    assert result.ended.cause == messages.DEADLINE
    assert os.WTERMSIG(result.ended.status) == signal.SIGKILL
    assert not children_of(server.pid)


async def test_a_child_that_fills_memory_is_killed_before_it_has_much_more(
    server: ForkServer,
) -> None:
    result = await ask(server, "fill_memory", resident=64 * MIB)
    assert result.ended.cause == messages.MEMORY
    assert result.ended.memory < 256 * MIB


@pytest.mark.parametrize("what", ["half", "silent", "endless"])
async def test_incomplete_or_oversized_frame_is_no_answer(server: ForkServer, what: str) -> None:
    result = await ask(server, what, seconds=5.0)
    assert result.answer is None


async def test_a_child_that_aborts_is_reported_with_its_stderr(server: ForkServer) -> None:
    result = await ask(server, "abort")
    assert os.WTERMSIG(result.ended.status) == signal.SIGABRT
    assert "panicked" in result.ended.stderr


async def test_an_exception_ends_only_its_child(server: ForkServer) -> None:
    result = await ask(server, "fail")
    assert os.waitstatus_to_exitcode(result.ended.status) == 1
    assert "a bug" in result.ended.stderr
    assert (await ask(server, "echo")).answer


async def test_output_beyond_a_limit_is_dropped_and_delays_nothing(server: ForkServer) -> None:
    result = await ask(server, "chatter")
    assert result.answer == b'"done"'
    assert 0 < len(result.ended.stderr) <= 4096


async def test_a_request_larger_than_any_buffer_arrives(server: ForkServer) -> None:
    # The child stops reading at 64 KiB, with an error.
    result = await server.execute(
        MISBEHAVE, (), request=bytes(4 * MIB), seconds=LONG, resident=256 * MIB
    )
    assert result.answer is None
    assert "4194304" in result.ended.stderr


async def test_an_answer_without_reading_the_request_arrives(server: ForkServer) -> None:
    """The child ends while its parent still writes: the request is larger than any buffer."""
    result = await server.execute(
        UNREAD, (), request=bytes(4 * MIB), seconds=LONG, resident=256 * MIB
    )
    assert (result.ended.status, result.ended.cause) == (0, "")
    assert result.answer is not None
    assert not alive(json.loads(result.answer))


async def test_a_child_that_another_process_kills_is_reported(server: ForkServer) -> None:
    asking = asyncio.create_task(ask(server, "wait_forever"))
    os.kill(await child_of(server), signal.SIGKILL)
    result = await asking
    assert (os.WTERMSIG(result.ended.status), result.ended.cause) == (signal.SIGKILL, "")


async def test_a_caller_that_leaves_takes_its_child_along(server: ForkServer) -> None:
    asking = asyncio.create_task(ask(server, "wait_forever"))
    child = await child_of(server)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not alive(child)
    assert (await ask(server, "echo")).answer


async def test_a_fork_server_that_is_killed_takes_its_children_along_and_is_replaced(
    server: ForkServer, metrics: Metrics
) -> None:
    asking = asyncio.create_task(ask(server, "wait_forever"))
    child = await child_of(server)
    first = cast(int, server.pid)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(NoVerdict) as caught:
        await asking
    assert caught.value.unknown.reason is NoVerdictReason.NOT_STARTED
    await until(lambda: not alive(child))
    assert (await ask(server, "echo")).answer
    assert server.pid not in {first, None}
    assert metrics.preflight_restarts._value.get() == 1


async def test_a_fork_server_that_hangs_is_replaced(metrics: Metrics) -> None:
    limits = PreflightLimits(restart_base=0.01, grace_seconds=0.3)
    async with forkserver.running(limits, metrics) as server:
        await ask(server, "echo")
        first = cast(int, server.pid)
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(NoVerdict) as caught:
            await ask(server, "echo", seconds=0.1)
        assert caught.value.unknown.reason is NoVerdictReason.NOT_STARTED
        assert (await ask(server, "echo")).answer
        assert not alive(first)


async def test_a_fork_server_that_cannot_start_is_reported_and_started_again(
    metrics: Metrics,
) -> None:
    limits = PreflightLimits(restart_base=0.01)
    async with forkserver.running(limits, metrics, module="tests.fakes.clocks") as server:
        with pytest.raises(NoVerdict) as caught:
            await ask(server, "echo")
        assert caught.value.unknown.reason is NoVerdictReason.NOT_STARTED
        await until(lambda: metrics.preflight_restarts._value.get() >= 2)


async def test_callers_wait_no_longer_than_the_start_limit(metrics: Metrics) -> None:
    limits = PreflightLimits(start_seconds=0.0, restart_base=1000.0)  # ready or not, it ends
    async with forkserver.running(limits, metrics) as server:
        with pytest.raises(NoVerdict) as caught:
            await ask(server, "echo")
        assert caught.value.unknown.reason is NoVerdictReason.NOT_STARTED


async def test_callers_do_not_wait_for_a_fork_server_that_cannot_start(metrics: Metrics) -> None:
    limits = PreflightLimits(start_seconds=1000.0, restart_base=1000.0)  # longer than the test
    async with forkserver.running(limits, metrics, module="tests.fakes.clocks") as server:
        for _ in range(3):
            with pytest.raises(NoVerdict) as caught:
                await ask(server, "echo")
            assert caught.value.unknown.reason is NoVerdictReason.NOT_STARTED


async def test_the_end_of_wasmer_ends_fork_server_and_children(metrics: Metrics) -> None:
    server = ForkServer(LIMITS, metrics=metrics, module=forkserver.CHILDREN)
    owner = asyncio.create_task(server.run())
    asking = asyncio.create_task(ask(server, "wait_forever"))
    child = await child_of(server)
    parent = cast(int, server.pid)
    owner.cancel()
    await asyncio.gather(owner, return_exceptions=True)
    await until(lambda: not alive(child) and not alive(parent))
    with pytest.raises(NoVerdict):
        await asking


_PARENT = """
import asyncio
from autowasm.limits import PreflightLimits
from autowasm.preflight.processes import ForkServer
from autowasm.telemetry.metrics import Metrics

async def main():
    server = ForkServer(PreflightLimits(), metrics=Metrics(), module="tests.fakes.children")
    owner = asyncio.create_task(server.run())
    await server.execute("misbehave", (), request=b"echo", seconds=60, resident=1 << 28)
    print(server.pid, flush=True)
    await server.execute("misbehave", (), request=b"wait_forever", seconds=60, resident=1 << 28)

asyncio.run(main())
"""


async def test_a_wasmer_that_is_killed_leaves_no_process() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PARENT,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdout is not None
    server = int(await process.stdout.readline())
    await until(lambda: len(children_of(server)) == 1)
    (child,) = children_of(server)
    process.kill()
    await process.wait()
    await until(lambda: not alive(server) and not alive(child))


_SUBREAPER = """
import asyncio, ctypes, os, signal
from autowasm.limits import PreflightLimits
from autowasm.preflight.processes import ForkServer
from autowasm.telemetry.metrics import Metrics
from tests.fakes.forkserver import children_of, until

async def main():
    assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: as PID 1 of a container
    server = ForkServer(PreflightLimits(), metrics=Metrics(), module="tests.fakes.children")
    owner = asyncio.create_task(server.run())
    asking = asyncio.create_task(
        server.execute("misbehave", (), request=b"wait_forever", seconds=60, resident=1 << 28)
    )
    # A child that the fork server has not reported yet would not be reaped.
    await until(lambda: server._life and server._life.pids)
    first = server.pid
    os.kill(first, signal.SIGKILL)
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: server.pid not in {None, first})
    print(children_of(os.getpid()) == {server.pid})
    owner.cancel()
    await asyncio.gather(owner, return_exceptions=True)
    print(children_of(os.getpid()) == set())

asyncio.run(main())
"""


async def test_a_wasmer_that_is_init_leaves_no_zombie() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _SUBREAPER,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    output, _ = await process.communicate()
    assert output.split()[-2:] == [b"True", b"True"]
