"""The state that the host keeps for a module beyond one stream: shared data, queues, metrics, log lines, and the time.

`Shared` belongs to all virtual machines of a `vm_id` and may outlive one of them. Invariants: the bytes that a module can make the
host keep are limited (`SandboxLimits.state_bytes`, `SandboxLimits.log_bytes`); a log line is one line of printable characters, safe
for terminals and statuses, whatever a module writes.

Sources: proxy-wasm-cpp-host src/shared_data.cc, src/shared_queue.cc; envoy source/extensions/common/wasm/context.cc
`defineMetric`, `incrementMetric`, `recordMetric`, `getMetric`, include/proxy-wasm/wasm.h `nextCounterMetricId`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from autowasm.sandbox.errors import FailureKind, ModuleFailed
from autowasm.sandbox.plugin import SandboxLimits
from autowasm.sandbox.protocol import U32, LogLevel, MetricType, Result
from autowasm.text import shown

U64: Final = U32 << 32 | U32
_ENTRY_BYTES: Final = 200
"""The cost of an entry in addition to its bytes."""


class Ledger:
    """Counts the bytes that the host keeps for a module."""

    def __init__(self, limits: SandboxLimits) -> None:
        self._most = limits.state_bytes
        self.held = 0

    def hold(self, size: int) -> None:
        """Account for an entry of `size` more bytes. Raises ModuleFailed (`LIMIT`)."""
        self.held += size + _ENTRY_BYTES
        if self.held > self._most:
            raise ModuleFailed(
                FailureKind.LIMIT,
                f"it makes the host keep more than {self._most} bytes, the limit of the sandbox",
            )

    def release(self, size: int) -> None:
        """Account for the removal of an entry of `size` bytes."""
        self.held = max(0, self.held - size - _ENTRY_BYTES)


@dataclass(slots=True)
class Queue:
    """A shared queue. `context` is the root context that is notified of new entries."""

    token: int
    context: int
    entries: deque[bytes] = field(default_factory=deque)


class Shared:
    """Shared data by VM id and key, and queues by VM id and name."""

    def __init__(self) -> None:
        self._data: dict[tuple[str, bytes], tuple[bytes, int]] = {}
        self._cas = 0
        self._tokens: dict[tuple[bytes, bytes], int] = {}
        self._queues: dict[int, Queue] = {}

    def get(self, vm_id: str, key: bytes) -> tuple[bytes, int] | None:
        """Value and version; None if the key does not exist."""
        return self._data.get((vm_id, key))

    def set(self, vm_id: str, key: bytes, value: bytes, *, cas: int, ledger: Ledger) -> Result:
        """Write a value if its version is `cas`, or 0 for any."""
        present = self._data.get((vm_id, key))
        if present is not None:
            if cas not in (0, present[1]):
                return Result.CAS_MISMATCH
            ledger.release(len(key) + len(present[0]))
        ledger.hold(len(key) + len(value))
        self._cas += 1
        self._data[vm_id, key] = (value, self._cas)
        return Result.OK

    def register(self, vm_id: str, name: bytes, *, context: int, ledger: Ledger) -> int:
        """The token of the queue, which is created if it does not exist; existing entries stay."""
        key = (vm_id.encode(), name)
        token = self._tokens.get(key)
        if token is None:
            ledger.hold(len(name))
            token = self._tokens[key] = len(self._tokens) + 1
            self._queues[token] = Queue(token, context)
        self._queues[token].context = context
        return token

    def resolve(self, vm_id: bytes, name: bytes) -> int | None:
        """The token of a queue that exists."""
        return self._tokens.get((vm_id, name))

    def queue(self, token: int) -> Queue | None:
        """The queue of a token."""
        return self._queues.get(token)


@dataclass(slots=True)
class Metric:
    """A metric of the module. A histogram keeps the values in `recorded`, up to a thousand of them."""

    type: MetricType
    name: bytes
    value: int = 0
    recorded: list[int] = field(default_factory=list)


_MOST_RECORDED: Final = 1000


class Metrics:
    """Metrics by name, and the ids by which the module knows them: several for a name that it defined repeatedly."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._next = {kind: int(kind) for kind in MetricType}
        self._by_id: dict[int, Metric] = {}
        self._by_name: dict[tuple[MetricType, bytes], Metric] = {}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._by_name.values())

    def define(self, kind: MetricType, name: bytes) -> int:
        """A new id for the metric of this name."""
        self._ledger.hold(len(name))
        self._next[kind] += 4
        metric = self._by_name.setdefault((kind, name), Metric(kind, name))
        self._by_id[self._next[kind]] = metric
        return self._next[kind]

    def increment(self, identifier: int, offset: int) -> Result:
        """Add to a counter, where the number must be positive, or to a gauge."""
        kind, metric = identifier & 3, self._by_id.get(identifier)
        if kind not in (MetricType.COUNTER, MetricType.GAUGE):
            return Result.BAD_ARGUMENT
        if metric is None:
            return Result.NOT_FOUND
        if kind == MetricType.COUNTER and offset <= 0:
            return Result.BAD_ARGUMENT
        metric.value = (metric.value + offset) & U64
        return Result.OK

    def record(self, identifier: int, value: int) -> Result:
        """Add to a counter, set a gauge, or record a value of a histogram."""
        metric = self._by_id.get(identifier)
        if metric is None:
            return Result.NOT_FOUND
        if metric.type is MetricType.COUNTER:
            metric.value = (metric.value + value) & U64
        elif metric.type is MetricType.GAUGE:
            metric.value = value
        elif len(metric.recorded) < _MOST_RECORDED:
            metric.recorded.append(value)
        return Result.OK

    def get(self, identifier: int) -> int | Result:
        """The value of a counter or gauge."""
        if identifier & 3 not in (MetricType.COUNTER, MetricType.GAUGE):
            return Result.BAD_ARGUMENT
        metric = self._by_id.get(identifier)
        return Result.NOT_FOUND if metric is None else metric.value


START_NANOSECONDS: Final = 1_767_225_600 * 1_000_000_000
"""The time at which a virtual machine starts by default: 2026-01-01 00:00:00 UTC."""
_STEP: Final = 1_000
"""Nanoseconds that pass whenever the module reads the clock, so that a loop that waits for a time ends."""


@dataclass(slots=True)
class _Timer:
    due: int
    period: int


class Clock:
    """Virtual time in nanoseconds. It passes when the module reads it and when the host waits, and then timers fire.

    `started_at`: when it starts, in nanoseconds since 1970.
    """

    def __init__(self, started_at: int = START_NANOSECONDS) -> None:
        self.started_at = started_at
        self._elapsed = 0
        self._timers: dict[int, _Timer] = {}

    def real(self) -> int:
        """Nanoseconds since 1970."""
        self._elapsed += _STEP
        return self.started_at + self._elapsed

    def monotonic(self) -> int:
        """Nanoseconds since some moment before the start."""
        self._elapsed += _STEP
        return 1_000_000_000 + self._elapsed

    @property
    def now(self) -> int:
        """Nanoseconds since the start; reading it takes no time."""
        return self._elapsed

    def set_timer(self, context: int, milliseconds: int) -> None:
        """Set the timer of a root context to this period, starting now; 0 stops it."""
        self._timers.pop(context, None)
        if milliseconds:
            period = milliseconds * 1_000_000
            self._timers[context] = _Timer(self._elapsed + period, period)

    def next_timer(self) -> tuple[int, int] | None:
        """The time at which the next timer fires, and its context; None if there are no timers."""
        due = ((timer.due, context) for context, timer in self._timers.items())
        return min(due, default=None)

    def advance_to(self, moment: int) -> None:
        """Advance time without firing timers. A moment in the past changes nothing."""
        self._elapsed = max(self._elapsed, moment)

    def fire(self, context: int, tick: Callable[[], None]) -> None:
        """Fire the timer of a context: `tick` runs first, and may change the period."""
        timer = self._timers.get(context)
        tick()
        if timer is not None and self._timers.get(context) is timer:
            timer.due = self._elapsed + timer.period


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that the module logged. `prefix` is the text that Envoy writes before it, after "wasm log"."""

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
        """The lines after the first `written` ones that are still kept."""
        return tuple(islice(self._lines, max(0, written - self.dropped), None))

    def last(self, count: int = 10) -> tuple[str, ...]:
        """The last lines as printable text, each shortened."""
        return tuple(
            str(line) for line in islice(self._lines, max(0, len(self._lines) - count), None)
        )


def _weight(line: LogLine) -> int:
    return len(line.message) + 100  # the overhead of an object
