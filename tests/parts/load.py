"""A steady load without retries: an answer without the filter's header counts as failed.

Not a benchmark. Two workers send requests alternately with a pause: one keeps its connection until the server closes it, the
other opens a connection for every request. Invariant: total = failed + good answers, and every request that has begun is
counted once: the end of the load waits for those in flight.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from tests.parts import wire

Worker = Literal["kept", "fresh"]
_WORKERS: tuple[Worker, ...] = ("kept", "fresh")

# The first failures show the reason; the others repeat it.
_DETAILED_FAILURES = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed request: when it began and how long it took, in seconds; `at` counts from the start of the load."""

    at: float
    took: float
    worker: Worker
    detail: str


@dataclass(slots=True)
class LoadReport:
    """Results so far. `by_value` counts the answers by the value of the wanted header (None: without it).

    `reopened` counts how often the server closed the kept connection properly between two requests. `first` and `last`
    are the times at which the first and the last answer with a value had arrived, by the monotonic clock in seconds.
    `times` has the begin (by the same clock) and the duration of each request, if the load records them.
    """

    total: int = 0
    failed: int = 0
    reopened: int = 0
    slowest: float = 0.0
    by_status: Counter[int] = field(default_factory=Counter)
    by_value: Counter[str | None] = field(default_factory=Counter)
    by_worker: Counter[Worker] = field(default_factory=Counter)
    first: dict[str | None, float] = field(default_factory=dict)
    last: dict[str | None, float] = field(default_factory=dict)
    times: list[tuple[float, float]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    async def until(self, value: str | None, count: int, *, timeout: float = 60) -> None:
        """Return once this many answers had the value. Raises TimeoutError with the results."""
        try:
            async with asyncio.timeout(timeout):
                while self.by_value[value] < count:
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise TimeoutError(
                f"no {count} answers with {value} within {timeout:g} s: {self}"
            ) from error

    def __str__(self) -> str:
        lines = [
            f"{self.total} requests, {self.failed} failed, slowest {self.slowest:.3f} s, "
            f"status {dict(self.by_status)}, values {dict(self.by_value)}, reopened {self.reopened}"
        ]
        lines += [
            f"  at {one.at:.3f} s ({one.worker}, {one.took:.3f} s): {one.detail}"
            for one in self.failures
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Load:
    """The request, and the condition for a good answer: status 200, and `header` with one of `values` (None: with any value).

    Without `header` status 200 is enough. `pause` is the time between two requests of a worker, `timeout` that for
    one request with its connection; a worker ends after `max_requests` or `max_seconds`, so no load is left running
    by mistake.
    """

    host: str
    path: str = "/"
    header: str | None = None
    values: Collection[str] | None = None
    pause: float = 0.005
    timeout: float = 10.0
    max_requests: int = 100_000
    max_seconds: float = 300.0
    record: bool = False

    @asynccontextmanager
    async def steady(self) -> AsyncIterator[LoadReport]:
        """Both workers run until the context ends; the report is live, and final afterwards."""
        report = LoadReport()
        stop = asyncio.Event()
        runs = [_Run(self, worker, report=report, stop=stop) for worker in _WORKERS]
        # No TaskGroup: it would wrap the test's own exceptions into an ExceptionGroup.
        tasks = [
            asyncio.create_task(run.ask_until_stopped(), name=f"load {run.worker}") for run in runs
        ]
        try:
            yield report
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def wait_for(self, value: str | None, *, timeout: float = 30) -> None:
        """Send requests, each on its own connection, until an answer is 200 with this value in `header` (None: without it).

        Raises TimeoutError with the last answer.
        """
        last = "nothing"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        answer = await wire.get(f"http://{self.host}{self.path}")
                    except OSError as error:
                        last = repr(error)
                    else:
                        found = answer.headers.get(self.header or "")
                        if answer.status == 200 and found == value:
                            return
                        said = "" if answer.status == 200 else f", {answer.body[:200]!r}"
                        last = f"status {answer.status}, {self.header}: {found}{said}"
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise TimeoutError(
                f"no answer with {self.header}: {value} within {timeout:g} s; the last was {last}"
            ) from error


@dataclass(slots=True)
class _Run:
    """One worker of a load."""

    load: Load
    worker: Worker
    report: LoadReport
    stop: asyncio.Event
    connection: wire.Connection | None = None
    begun: float = field(default_factory=time.monotonic)

    async def ask_until_stopped(self) -> None:
        deadline = self.begun + self.load.max_seconds
        try:
            for _ in range(self.load.max_requests):
                if self.stop.is_set() or time.monotonic() > deadline:
                    return
                await self._ask_once()
                await asyncio.sleep(self.load.pause)
        finally:
            await self._close()

    async def _ask_once(self) -> None:
        started = time.monotonic()
        problem: str | None
        try:
            async with asyncio.timeout(self.load.timeout):
                problem = self._judge(await self._answer())
        except OSError as error:  # TimeoutError is one
            problem = repr(error)
        took = time.monotonic() - started
        if problem is not None or self.worker == "fresh":
            await self._close()
        self._count(Failure(started - self.begun, took, self.worker, problem or ""))

    async def _answer(self) -> wire.Answer:
        if self.connection and not self.connection.usable:
            # Ended before anything was sent: a new connection is no retry.
            await self._close()
            self.report.reopened += 1
        if self.connection is None:
            self.connection = await wire.Connection.open(self.load.host)
        return await self.connection.request("GET", self.load.path)

    def _judge(self, answer: wire.Answer) -> str | None:
        """The problem with the answer; None: it is good."""
        load, report = self.load, self.report
        value = answer.headers.get(load.header) if load.header else None
        report.by_status[answer.status] += 1
        report.by_value[value] += 1
        now = time.monotonic()
        report.first.setdefault(value, now)
        report.last[value] = now
        if answer.status != 200:
            return f"status {answer.status}: {answer.body[:200]!r}"
        if load.header and value is None:
            return f"no header {load.header}"
        if load.values is not None and value not in load.values:
            return f"{load.header}: {value}, which is none of {sorted(load.values)}"
        return None

    def _count(self, outcome: Failure) -> None:
        report = self.report
        report.total += 1
        report.by_worker[self.worker] += 1
        report.slowest = max(report.slowest, outcome.took)
        if self.load.record:
            report.times.append((self.begun + outcome.at, outcome.took))
        if outcome.detail:
            report.failed += 1
            if len(report.failures) < _DETAILED_FAILURES:
                report.failures.append(outcome)

    async def _close(self) -> None:
        if self.connection:
            connection, self.connection = self.connection, None
            await connection.close()
