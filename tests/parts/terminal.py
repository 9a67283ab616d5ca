"""A program at a terminal: a pseudo-terminal of a given size, with the keys that a person types.

Invariant: the program is in a session of its own whose controlling terminal this is, so Ctrl-C is a key, not a signal of the test.
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.parts import preloaded

INTERRUPT = b"\x03"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ERASE = "\x1b[K"


class Screen:
    """The screen and the keyboard of a terminal."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._seen = b""

    @property
    def text(self) -> str:
        """Everything that was written so far, with its control sequences. Line ends are those of a file."""
        return self._seen.decode(errors="replace").replace("\r\n", "\n")

    def press(self, keys: bytes) -> None:
        """Type these keys."""
        os.write(self._leader, keys)

    def read_until(self, pattern: str, *, timeout: float = 60) -> str:
        """Read until the text matches. Raises TimeoutError, and EOFError if the program ends before."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.text):
            if not self._read(end - time.monotonic()):
                raise EOFError(f"it ended without {pattern!r}: {self.text}")
        return self.text

    def read_to_end(self, *, timeout: float = 60) -> None:
        """Read until no program has the terminal open. Raises TimeoutError."""
        end = time.monotonic() + timeout
        while self._read(end - time.monotonic()):
            pass

    def _read(self, timeout: float) -> bool:
        """Read one piece. False at the end."""
        ready, _, _ = select.select([self._leader], [], [], max(timeout, 0))
        if not ready:
            raise TimeoutError(f"nothing more was written: {self.text}")
        try:
            piece = os.read(self._leader, 65536)
        except OSError:  # EIO: the last descriptor of the terminal is closed
            return False
        self._seen += piece
        return bool(piece)


class Terminal(Screen):
    """The terminal of a running program."""

    def __init__(self, process: "subprocess.Popen[bytes]", leader: int) -> None:
        super().__init__(leader)
        self.process = process

    def wait(self, *, timeout: float = 60) -> int:
        """Read to the end; the exit status. Raises TimeoutError."""
        end = time.monotonic() + timeout
        self.read_to_end(timeout=timeout)
        return self.process.wait(max(0.1, end - time.monotonic()))


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    columns: int,
    cwd: Path,
    environment: Mapping[str, str],
    stdout: int | None = None,
) -> Iterator[Terminal]:
    """Run a program at a terminal of this many columns, and 24 rows. `stdout`: standard output, if it is not the terminal."""
    leader, follower = _open(columns)
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=follower,
            stdout=follower if stdout is None else stdout,
            stderr=follower,
            cwd=cwd,
            env=_variables(environment),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
    finally:
        os.close(follower)
    try:
        yield Terminal(process, leader)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(leader)


async def shown(
    entry_point: str,
    *arguments: str,
    columns: int,
    cwd: Path,
    environment: Mapping[str, str],
) -> tuple[str, int]:
    """Run a console script of ours to its end at a terminal: the terminal's output, and the exit status. Raises TimeoutError.

    It is forked (`preloaded.py`).
    """
    leader, follower = _open(columns)
    try:
        try:
            child = await preloaded.start(
                entry_point,
                [entry_point, *arguments],
                environment=_variables(environment),
                directory=cwd,
                streams=(follower, follower, follower),
            )
        finally:
            os.close(follower)
        screen = Screen(leader)
        reading = asyncio.ensure_future(asyncio.to_thread(screen.read_to_end))
        try:
            await asyncio.shield(reading)
            return screen.text, await child.wait()
        finally:
            child.kill()
            await child.wait()
            await asyncio.wait([reading])
    finally:
        os.close(leader)


def _open(columns: int) -> tuple[int, int]:
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return leader, follower


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "TERM": "xterm-256color", **environment}


def plain(text: str) -> str:
    """Without colours."""
    return _COLOURS.sub("", text)


def drawn(text: str) -> list[str]:
    """The states of a line that is redrawn repeatedly, as columns of the screen."""
    return [each.replace(_ERASE, "") for each in re.split(r"[\r\n]", plain(text)) if each]
