"""Our own commands, forked from a process that has imported them: a start costs 20 ms of processor time instead of 500.

That process is multiprocessing's fork server, one per test process; it ends with it. Invariant: what runs is what the installed
console script runs, with arguments, environment, folder, streams and session of its own, and with the exit status or signal of
a program. What is not its own is the interpreter: the hash seed, flags, and what the environment tells Python at its start. A
test about those starts the console script.
"""

import asyncio
import atexit
import functools
import multiprocessing
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from multiprocessing import context, reduction
from pathlib import Path
from typing import Any, NoReturn

import autowasm.cli


def fits(environment: Mapping[str, str]) -> bool:
    """Whether a command with this environment can be forked: it says nothing to Python, and nothing measures the command."""
    return not any(name.startswith(("PYTHON", "COVERAGE_")) for name in environment)


async def run(
    entry_point: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    stdin: bytes = b"",
) -> tuple[int, bytes, bytes]:
    """Run the console script `entry_point` as `command`, to its end: status (negative: the signal), output, errors.

    The streams are pipes. If the task is cancelled, the command gets SIGKILL.
    """
    loop = asyncio.get_running_loop()
    (given, to), (out, printed), (err, complained) = os.pipe(), os.pipe(), os.pipe()
    streams = _Streams((given, printed, complained))
    child = _server().Process(
        target=_become,
        args=(entry_point, list(command), dict(environment), str(directory), streams),
    )
    async with _reader(out) as output, _reader(err) as errors:
        ended = asyncio.Event()
        try:
            try:
                await asyncio.to_thread(child.start)
            except BaseException:
                os.close(to)
                raise
            finally:
                for end in (given, printed, complained):
                    os.close(end)
            loop.add_reader(child.sentinel, ended.set)
            writing = asyncio.to_thread(_write, to, stdin)
            texts = await asyncio.gather(output.read(), errors.read(), ended.wait(), writing)
        finally:
            if child.pid is not None:
                loop.remove_reader(child.sentinel)
                child.kill()
                await asyncio.to_thread(child.join)
        assert child.exitcode is not None
        return child.exitcode, texts[0], texts[1]


@asynccontextmanager
async def _reader(number: int) -> AsyncIterator[asyncio.StreamReader]:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(number, "rb", 0)
    )
    try:
        yield reader
    finally:
        transport.close()


def _write(number: int, data: bytes) -> None:
    """All of it, or as much as the command reads before it ends."""
    with suppress(BrokenPipeError), os.fdopen(number, "wb") as pipe:
        pipe.write(data)


@functools.cache
def _server() -> context.ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    commands = pkgutil.iter_modules(autowasm.cli.__path__, f"{autowasm.cli.__name__}.")
    server.set_forkserver_preload([command.name for command in commands])
    return server


class _Streams:
    """Open files that go to the child with its arguments, in which they are the numbers of its own."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (*map(reduction.DupFd, self._numbers),)


def _received(*duplicates: Any) -> list[int]:
    return [duplicate.detach() for duplicate in duplicates]


def _become(
    entry_point: str,
    command: list[str],
    environment: dict[str, str],
    directory: str,
    streams: Sequence[int],
) -> NoReturn:
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(directory)
    # As the interpreter opens them for pipes.
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - until the process ends
    sys.stderr = open(2, "w", errors="backslashreplace", buffering=1)  # noqa: SIM115
    sys.argv = command
    status = 1
    try:
        (script,) = metadata.entry_points(group="console_scripts", name=entry_point)
        sys.exit(script.load()())
    except SystemExit as end:
        status = _status(end.code)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    os._exit(max(status, _flushed()))


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _flushed() -> int:
    """The interpreter's status where what was printed could not be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return 120
    return 0
