"""A program at a terminal: a pseudo-terminal of a given size, with the keys that a person types.

Invariant: the program is in a session of its own whose controlling terminal this is, so Ctrl-C is a key, not a signal of the test.
"""

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

INTERRUPT = b"\x03"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ERASE = "\x1b[K"


class Terminal:
    """The screen and the keyboard of a running program."""

    def __init__(self, process: "subprocess.Popen[bytes]", leader: int) -> None:
        self.process = process
        self._leader = leader
        self._seen = b""

    @property
    def text(self) -> str:
        """All that was written so far, with its control sequences. Line ends are those of a file."""
        return self._seen.decode(errors="replace").replace("\r\n", "\n")

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._leader, keys)

    def read_until(self, pattern: str, *, timeout: float = 60) -> str:
        """Read until the text matches. Raises TimeoutError, and EOFError if the program ends before."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.text):
            if not self._read(end - time.monotonic()):
                raise EOFError(f"it ended without {pattern!r}: {self.text}")
        return self.text

    def wait(self, *, timeout: float = 60) -> int:
        """Read to the end; the exit status. Raises TimeoutError."""
        end = time.monotonic() + timeout
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    def _read(self, timeout: float) -> bool:
        """One piece. False at the end."""
        ready, _, _ = select.select([self._leader], [], [], max(timeout, 0))
        if not ready:
            raise TimeoutError(f"nothing more was written: {self.text}")
        try:
            piece = os.read(self._leader, 65536)
        except OSError:  # EIO: the last descriptor of the terminal is closed
            return False
        self._seen += piece
        return bool(piece)


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    columns: int,
    cwd: Path,
    environment: Mapping[str, str],
    stdout: int | None = None,
) -> Iterator[Terminal]:
    """Run a program at a terminal of so many columns, and 24 rows. `stdout`: standard output, if it is not the terminal."""
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=follower,
            stdout=follower if stdout is None else stdout,
            stderr=follower,
            cwd=cwd,
            env={"PATH": os.environ["PATH"], "TERM": "xterm-256color", **environment},
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


def plain(text: str) -> str:
    """Without colours."""
    return _COLOURS.sub("", text)


def drawn(text: str) -> list[str]:
    """The states of a line that is drawn again and again, as columns of the screen."""
    return [each.replace(_ERASE, "") for each in re.split(r"[\r\n]", plain(text)) if each]
