"""A real program that runs for as long as a test or the demo needs it.

Not a supervisor: the death of a process is an error, which shows the end of its log. Invariant: after `stop`, `kill` or
the end of the context no process is left, and none outlives the Python process that started it.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.parts import preloaded

_LEASH = Path(__file__).with_name("_leash.py")
_POLL_SECONDS = 0.03
_TAIL_LINES = 50
# More than 50 lines of any sane log.
_TAIL_BYTES = 64 * 1024

_IN_USE = "address already in use"

# Attempts to start a program that cannot choose its port itself, each with another port.
PORT_ATTEMPTS = 5


class ProcessError(Exception):
    """A real program died, or was not ready in time. The message ends with the last lines of its log."""

    @property
    def port_taken(self) -> bool:
        """Whether the log shows that another process had the port: try again with a different one."""
        return _IN_USE in str(self).lower()


class Process:
    """One program, which may be stopped and started again. Its output is appended to `log`.

    It runs in a session of its own, so Ctrl-C in a terminal reaches only us, and we end it properly.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        entry_point: str = "",
    ) -> None:
        """`entry_point`: if `command` is a console script of ours, its entry point; then it is forked instead of started (`preloaded.py`)."""
        self.name = name
        self.command = [str(word) for word in command]
        self.log = log
        self._env = env
        self._cwd = cwd
        self._entry_point = entry_point
        self._running: asyncio.subprocess.Process | preloaded.Forked | None = None

    @property
    def pid(self) -> int:
        """The id of the process that runs, or ran last."""
        if self._running is None:
            raise ProcessError(f"{self.name} was never started")
        return self._running.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs and before the first start; negative: the signal that ended it."""
        return None if self._running is None else self._running.returncode

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self._running is not None and self._running.returncode is None

    async def start(
        self,
        *,
        ready: Callable[[], Awaitable[bool]],
        timeout: float = 30,
        progress: Callable[[], object] | None = None,
    ) -> None:
        """Start, and wait until `ready` returns True. Raises ProcessError on death or after `timeout` seconds.

        `ready` may raise OSError for "not yet". `progress`: for a program that computes for long before it is ready; the timeout
        begins again whenever this returns another value.
        """
        if self.alive:
            raise ProcessError(f"{self.name} runs already")
        await self._spawn()
        try:
            async with asyncio.timeout(None) as deadline:
                await self._until(ready, deadline, timeout, progress)
        except TimeoutError as error:
            await self.kill()
            raise ProcessError(
                f"{self.name} was not ready after {timeout:g} s{' without progress' if progress else ''}\n{await self.tail()}"
            ) from error
        except BaseException:
            await self.kill()
            raise

    async def _spawn(self) -> None:
        environment = os.environ if self._env is None else self._env
        output = await asyncio.to_thread(self._open_log)
        try:
            if self._entry_point and preloaded.fits(environment):
                self._running = await self._fork(environment, output)
            else:
                self._running = await self._execute(output)
        finally:
            os.close(output)

    async def _fork(self, environment: Mapping[str, str], output: int) -> preloaded.Forked:
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            return await preloaded.start(
                self._entry_point,
                self.command,
                environment=environment,
                directory=self._cwd or Path.cwd(),
                streams=(nothing, output, output),
            )
        finally:
            os.close(nothing)

    async def _execute(self, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *[sys.executable, "-S", "-E", str(_LEASH), str(os.getpid()), *self.command],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env=self._env,
            cwd=self._cwd,
            start_new_session=True,
        )

    def _open_log(self) -> int:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    async def _until(
        self,
        ready: Callable[[], Awaitable[bool]],
        deadline: asyncio.Timeout,
        timeout: float,
        progress: Callable[[], object] | None,
    ) -> None:
        now = asyncio.get_running_loop().time
        deadline.reschedule(now() + timeout)
        seen = progress() if progress else None
        while True:
            if progress and seen != (seen := progress()):
                deadline.reschedule(now() + timeout)
            await self.check()
            with suppress(OSError):
                if await ready():
                    # Another process may have answered on the port: ours may just have failed to bind it.
                    await self.check()
                    return
            await asyncio.sleep(_POLL_SECONDS)

    async def check(self) -> None:
        """Raise ProcessError, with the end of the log, unless it runs."""
        if not self.alive:
            raise ProcessError(
                f"{self.name} ended with status {self.returncode}\n{await self.tail()}"
            )

    async def tail(self, *, lines: int = _TAIL_LINES) -> str:
        """The last lines of the log, under a line that names the file."""
        text = await asyncio.to_thread(self._read_end)
        return "\n".join([f"--- the end of {self.log} ---", *text.splitlines()[-lines:]])

    def _read_end(self) -> str:
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - _TAIL_BYTES))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    async def stop(self, *, timeout: float = 10) -> None:
        """Send SIGTERM, and SIGKILL after `timeout` seconds. Returns when it has ended; no error if it had already ended."""
        if self._running is None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                await self._running.wait()
        except TimeoutError:
            await self.kill()

    async def wait(self) -> int:
        """Return its status once it has ended, in any way."""
        if self._running is None:
            raise ProcessError(f"{self.name} was never started")
        return await self._running.wait()

    async def kill(self) -> None:
        """End it without a chance to clean up (SIGKILL), with all processes that it started."""
        if self._running is None:
            return
        self._signal(signal.SIGKILL)
        await self._running.wait()

    def _signal(self, number: int) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
