"""Jobs in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from autowasm.api.record import Record
from autowasm.artifacts.source import FetchRequest
from autowasm.controller.fetchjobs import FetchDone, FetchFailed, FetchJobs, FetchRunning
from autowasm.errors import (
    AddressBlocked,
    AutoWasmError,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from autowasm.kube.resources import ObjectKey
from autowasm.limits import FetchLimits
from tests.fakes.autowasms import autowasm, record

pytestmark = pytest.mark.looptime

KEY, OTHER = ObjectKey("default", "one"), ObjectKey("default", "two")
REQUEST = FetchRequest(namespace="default", source=autowasm().spec.filter.source)


class Fetcher:
    """Takes five seconds, then returns or raises the given result."""

    def __init__(self) -> None:
        self.outcome: Callable[[], Awaitable[Record]] = self._success
        self.begun: list[float] = []
        self.cancelled = 0

    async def _success(self) -> Record:
        return record()

    def fail(self, error: Exception) -> None:
        async def failure() -> Record:
            raise error

        self.outcome = failure

    async def fetch(self, request: FetchRequest) -> Record:
        self.begun.append(asyncio.get_running_loop().time())
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await self.outcome()


@pytest.fixture
def fetcher() -> Fetcher:
    return Fetcher()


@pytest.fixture
def changed() -> list[ObjectKey]:
    return []


@pytest.fixture
async def jobs(fetcher: Fetcher, changed: list[ObjectKey]) -> AsyncIterator[FetchJobs]:
    async with asyncio.TaskGroup() as tasks:
        jobs = FetchJobs(
            fetcher,  # type: ignore[arg-type]
            limits=FetchLimits(),
            tasks=tasks,
            on_change=changed.append,
        )
        yield jobs
        for key in (KEY, OTHER):
            jobs.forget(key)


async def test_finished_fetch_queues_the_key_and_keeps_its_result(
    jobs: FetchJobs, fetcher: Fetcher, changed: list[ObjectKey]
) -> None:
    assert jobs.ensure(KEY, REQUEST) == FetchRunning(0)
    assert jobs.is_running(KEY)
    await asyncio.sleep(2)
    assert jobs.ensure(KEY, REQUEST) == FetchRunning(2)
    await asyncio.sleep(4)
    assert changed == [KEY]
    assert not jobs.is_running(KEY)
    assert jobs.ensure(KEY, REQUEST) == jobs.ensure(KEY, REQUEST) == FetchDone(record())
    assert len(fetcher.begun) == 1


async def test_retries_at_growing_times_and_never_early(
    jobs: FetchJobs, fetcher: Fetcher, changed: list[ObjectKey]
) -> None:
    fetcher.fail(SourceUnavailable("down"))
    waits = []
    for _ in range(5):
        jobs.ensure(KEY, REQUEST)
        await asyncio.sleep(5.01)
        state = jobs.ensure(KEY, REQUEST)
        assert isinstance(state, FetchFailed)
        assert state.retry_in is not None
        waits.append(state.retry_in)
        await asyncio.sleep(state.retry_in / 2)
        assert isinstance(jobs.ensure(KEY, REQUEST), FetchFailed)
        await asyncio.sleep(state.retry_in / 2 + 0.01)
    assert len(fetcher.begun) == len(changed) == 5
    for wait, expected in zip(waits, [1, 2, 4, 8, 16], strict=True):
        assert expected - 0.02 <= wait <= expected * 1.1


@pytest.mark.parametrize(
    ("error", "seconds"), [(SourceNotFound("x"), 15), (SourceDenied("x"), 300)]
)
async def test_retry_delay_follows_the_error(
    jobs: FetchJobs, fetcher: Fetcher, error: AutoWasmError, seconds: float
) -> None:
    fetcher.fail(error)
    jobs.ensure(KEY, REQUEST)
    await asyncio.sleep(6)
    state = jobs.ensure(KEY, REQUEST)
    assert isinstance(state, FetchFailed)
    assert state.error is error
    assert state.retry_in is not None
    assert seconds - 2 <= state.retry_in <= seconds * 1.1


async def test_permanent_failure_is_not_retried(jobs: FetchJobs, fetcher: Fetcher) -> None:
    fetcher.fail(AddressBlocked("loopback"))
    jobs.ensure(KEY, REQUEST)
    await asyncio.sleep(100_000)
    state = jobs.ensure(KEY, REQUEST)
    assert isinstance(state, FetchFailed)
    assert state.retry_in is None
    assert len(fetcher.begun) == 1


@pytest.mark.parametrize("resolve_key", ["", "2"])
async def test_another_request_or_resolve_key_cancels_and_restarts_the_fetch(
    jobs: FetchJobs, fetcher: Fetcher, changed: list[ObjectKey], resolve_key: str
) -> None:
    other = FetchRequest(namespace="default", source=REQUEST.source, secret=resolve_key or "other")
    jobs.ensure(KEY, REQUEST, resolve_key="1")
    await asyncio.sleep(2)
    assert jobs.ensure(
        KEY, REQUEST if resolve_key else other, resolve_key=resolve_key
    ) == FetchRunning(0)
    await asyncio.sleep(0)
    assert fetcher.cancelled == 1
    await asyncio.sleep(6)
    assert changed == [KEY]


async def test_another_resolve_key_starts_a_fetch_without_the_retry_delay(
    jobs: FetchJobs, fetcher: Fetcher
) -> None:
    fetcher.fail(SourceDenied("x"))
    jobs.ensure(KEY, REQUEST, resolve_key="1")
    await asyncio.sleep(6)
    assert jobs.ensure(KEY, REQUEST, resolve_key="2") == FetchRunning(0)


async def test_forgetting_a_job_cancels_its_fetch_without_a_report(
    jobs: FetchJobs, fetcher: Fetcher, changed: list[ObjectKey]
) -> None:
    jobs.ensure(KEY, REQUEST)
    jobs.ensure(OTHER, REQUEST)
    await asyncio.sleep(1)
    jobs.forget(KEY)
    jobs.forget(KEY)
    await asyncio.sleep(10)
    assert fetcher.cancelled == 1
    assert changed == [OTHER]


async def test_failed_job_is_due_at_once_when_its_secret_changed(
    jobs: FetchJobs, fetcher: Fetcher
) -> None:
    fetcher.fail(SourceDenied("x"))
    jobs.ensure(KEY, REQUEST)
    await asyncio.sleep(6)
    jobs.retry_now(KEY)
    assert jobs.ensure(KEY, REQUEST) == FetchRunning(0)


async def test_job_that_runs_while_its_secret_changes_is_due_as_soon_as_it_fails(
    jobs: FetchJobs, fetcher: Fetcher
) -> None:
    fetcher.fail(SourceDenied("with the old password"))
    jobs.ensure(KEY, REQUEST)
    await asyncio.sleep(1)
    jobs.retry_now(KEY)
    assert isinstance(jobs.ensure(KEY, REQUEST), FetchRunning)
    await asyncio.sleep(5)
    assert jobs.ensure(KEY, REQUEST) == FetchRunning(0)
    await asyncio.sleep(6)
    assert isinstance(jobs.ensure(KEY, REQUEST), FetchFailed)


async def test_retry_of_nothing_does_nothing(jobs: FetchJobs, fetcher: Fetcher) -> None:
    jobs.retry_now(KEY)
    await asyncio.sleep(1)
    assert not fetcher.begun


async def test_bug_fails_one_job_and_is_retried(
    jobs: FetchJobs, fetcher: Fetcher, changed: list[ObjectKey]
) -> None:
    fetcher.fail(ZeroDivisionError("a bug"))
    jobs.ensure(KEY, REQUEST)
    await asyncio.sleep(5.5)
    state = jobs.ensure(KEY, REQUEST)
    assert isinstance(state, FetchFailed)
    assert "ZeroDivisionError: a bug" in str(state.error)
    assert state.error.reason == "InternalError"
    assert changed == [KEY]
    await asyncio.sleep(2)
    fetcher.outcome = fetcher._success
    assert isinstance(jobs.ensure(KEY, REQUEST), FetchRunning)
