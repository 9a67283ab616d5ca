"""Our own commands, forked from a process that has imported them: a start costs 20 ms of processor time instead of 500.

That process is multiprocessing's fork server; each test process has one, which ends with it. Invariant: a command runs the code
of the installed console script, with its own arguments, environment, folder, streams and session, and ends with the exit status
or signal of a program. Only the interpreter is shared: the hash seed, flags, and variables that Python reads at its start. A test
about those starts the console script.
"""

import asyncio
import atexit
import fcntl
import functools
import gc
import inspect
import multiprocessing
import os
import pkgutil
import posix
import signal
import sys
import termios
import threading
import time
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from multiprocessing import context, reduction
from pathlib import Path
from typing import Any, NoReturn

import autowasm
from tests.parts import _leash

# Modules that wasmer imports by name or for its first Wasm module.
_IMPORTED_LATER = ("anyio._backends._asyncio", "wasmtime")

if "COVERAGE_PROCESS_START" in os.environ:
    # coverage records its stack when it starts again in a child. `inspect` maps all modules to files for that, here only once.
    inspect.stack()

# multiprocessing polls all its children whenever it starts one, and reads the status of each only once.
_one_at_a_time = threading.Lock()


def fits(environment: Mapping[str, str]) -> bool:
    """Whether a command with this environment can be forked: its variables for Python and coverage must be the same as ours."""
    return not any(
        name.startswith(("COVERAGE_", "PYTHON")) and os.environ.get(name) != text
        for name, text in environment.items()
    )


class Forked:
    """A forked command, with the part of `asyncio.subprocess.Process` that is used here."""

    def __init__(self, child: context.ForkServerProcess) -> None:
        assert child.pid is not None
        self.pid: int = child.pid
        self.returncode: int | None = None
        """None while it runs; negative: the signal that ended it."""
        self._child = child
        self._watching = asyncio.create_task(self._watch())

    async def wait(self) -> int:
        """Return its status once it has ended."""
        await asyncio.shield(self._watching)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """End it with SIGKILL. No error if it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def _watch(self) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._child.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._child.sentinel)
        self.returncode = await asyncio.to_thread(_exit_code, self._child)


async def start(
    entry_point: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    streams: Sequence[int],
) -> Forked:
    """Run the console script `entry_point` as `command`; `streams` are its standard input, output and error, which stay open here.

    If its input is a terminal, that becomes its controlling terminal. Returns once it leads a session of its
    own, which ends with this process.
    """
    given = (entry_point, list(command), dict(environment), str(directory))
    launching = asyncio.ensure_future(asyncio.to_thread(_launch, given, streams))
    try:
        child = await asyncio.shield(launching)
    except asyncio.CancelledError:
        # The thread continues: the streams must not be closed while it runs, and its child has no other owner.
        await asyncio.wait([launching])
        if not launching.cancelled() and launching.exception() is None:
            launching.result().kill()
        raise
    return Forked(child)


def _launch(given: Sequence[Any], streams: Sequence[int]) -> context.ForkServerProcess:
    ready, begun = os.pipe()
    try:
        child = _server().Process(target=_become, args=(*given, _Streams((*streams, begun))))
        try:
            with _one_at_a_time:
                child.start()
        finally:
            os.close(begun)
        os.read(ready, 1)  # or the end of the stream, if it died before
    finally:
        os.close(ready)
    return child


def _exit_code(child: context.ForkServerProcess) -> int:
    with _one_at_a_time:
        child.join()
        assert child.exitcode is not None
        return child.exitcode


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
    (given, to), (out, printed), (err, complained) = os.pipe(), os.pipe(), os.pipe()
    async with _reader(out) as output, _reader(err) as errors:
        try:
            child = await start(
                entry_point,
                command,
                environment=environment,
                directory=directory,
                streams=(given, printed, complained),
            )
        except BaseException:
            os.close(to)
            raise
        finally:
            for end in (given, printed, complained):
                os.close(end)
        try:
            writing = asyncio.to_thread(_write, to, stdin)
            texts = await asyncio.gather(output.read(), errors.read(), child.wait(), writing)
        finally:
            child.kill()
            await child.wait()
        return texts[2], texts[0], texts[1]


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
    """Write all of it, or as much as the command reads before it ends."""
    with suppress(BrokenPipeError), os.fdopen(number, "wb") as pipe:
        pipe.write(data)


@functools.cache
def _server() -> context.ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    ours = pkgutil.walk_packages(autowasm.__path__, f"{autowasm.__name__}.")
    modules = [one.name for one in ours if not one.name.endswith(".__main__")]
    server.set_forkserver_preload([*modules, *_IMPORTED_LATER, __name__])
    return server


class _Streams:
    """Open files that are sent to the child with its arguments, which name them by the child's own descriptors."""

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
    # A full collection would visit, and so copy, all that the fork server has imported: four fifths of the time of a short command.
    gc.freeze()
    os.setsid()
    _leash.die_with_parent()
    tests = multiprocessing.parent_process()
    if tests is None or not tests.is_alive():
        os._exit(1)  # The tests ended before the death signal was set.
    *standard, begun = streams
    for number, stream in enumerate(standard):
        os.dup2(stream, number)
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its controlling terminal: Ctrl-C there is a signal
    os.write(begun, b".")
    # One of the others is the end of a pipe, and the fork server waits until it is closed.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(directory)
    # As the interpreter opens them, for pipes and for a terminal.
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - until the process ends
    sys.stderr = open(2, "w", errors="backslashreplace", buffering=1)  # noqa: SIM115
    sys.argv = command
    status = 1
    try:
        ours = metadata.distribution(autowasm.__name__).entry_points
        (script,) = ours.select(group="console_scripts", name=entry_point)
        sys.exit(script.load()())
    except SystemExit as end:
        status = _status(end.code)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    status = max(status, _flushed())
    if "coverage" in sys.modules and (measuring := sys.modules["coverage"].Coverage.current()):
        measuring.save()
    # Not os._exit: coverage patched it in the fork server, and would store here what that has imported: 75 ms of processor time.
    posix._exit(status)


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _flushed() -> int:
    """The interpreter's status if the output could not be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return 120
    return 0
