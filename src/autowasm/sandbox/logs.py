"""The log lines of a module: bounded, and made safe for terminals and statuses.

Invariant: whatever a module writes, no more than the limits are kept, and a line is one line of printable characters.
"""

from collections import deque
from dataclasses import dataclass
from itertools import islice

from autowasm.sandbox.plugin import SandboxLimits
from autowasm.sandbox.protocol import LogLevel
from autowasm.text import shown


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that the module logged. `prefix` is what Envoy writes before it, after "wasm log"."""

    level: LogLevel
    message: bytes
    prefix: str = ""

    @property
    def text(self) -> str:
        """The message as printable characters, whole."""
        return shown(self.message, most=max(1, len(self.message)) * 4)

    def __str__(self) -> str:
        return f"{self.level.name.lower()}: {shown(self.message, most=500)}"


class Log:
    """The last lines, as many as the limits allow."""

    def __init__(self, limits: SandboxLimits) -> None:
        self._limits = limits
        self._lines: deque[LogLine] = deque()
        self._bytes = 0
        self.written = 0
        """Lines that were logged, kept or not."""
        self.dropped = 0
        """Lines that are not kept any more."""

    def add(self, level: LogLevel, message: bytes, *, prefix: str = "") -> None:
        """Keep a line."""
        line = LogLine(level, message[: self._limits.log_line_bytes], prefix)
        self.written += 1
        self._lines.append(line)
        self._bytes += _weight(line)
        while self._bytes > self._limits.log_bytes:
            self._bytes -= _weight(self._lines.popleft())
            self.dropped += 1

    def since(self, written: int) -> tuple[LogLine, ...]:
        """The lines after the first `written` ones, as far as they are kept."""
        return tuple(islice(self._lines, max(0, written - self.dropped), None))

    def last(self, count: int = 10) -> tuple[str, ...]:
        """The last lines as printable text, each shortened."""
        return tuple(
            str(line) for line in islice(self._lines, max(0, len(self._lines) - count), None)
        )


def _weight(line: LogLine) -> int:
    return len(line.message) + 100  # what an object takes besides
