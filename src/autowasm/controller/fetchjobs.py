"""FetchJobs: the fetches that AutoWasms wait for, outside the reconcile path, with a retry delay for each class of error.

A worker reads the state of a job and moves on; when the job ends, the key is queued again. The delays are the table in
docs/architecture.md, Errors. `artifacts/fetchlimiter.py` limits how many fetches run. Invariants: an object has at most one job;
an outcome stays until its retry is due or its request changes, so an early reconcile starts nothing; an error that only a change
of the spec can fix is never retried without one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import Source
from autowasm.artifacts.fetcher import DAMAGED_ON_THE_WAY, ArtifactFetcher
from autowasm.artifacts.source import FetchRequest
from autowasm.errors import (
    AddressBlocked,
    AutoWasmError,
    ContentRejected,
    SecretAccessForbidden,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    SpecError,
    StorageError,
)
from autowasm.flowcontrol import Backoff
from autowasm.kube.resources import ObjectKey
from autowasm.limits import FetchLimits
from autowasm.reference import ImageReference


def retry_delay(
    error: Exception, *, failures: int, source: Source, limits: FetchLimits
) -> float | None:
    """Seconds until the next try after `failures` consecutive failures; None: no retry before a change."""
    backoff = Backoff(limits.retry_base, limits.retry_maximum)
    if isinstance(error, AddressBlocked):
        return None
    if isinstance(error, SpecError):
        # During a fetch, only the pull secret causes a SpecError: it is not watched, and fixing it changes no spec.
        return Backoff(limits.denied_retry, limits.denied_retry).delay(1)
    if isinstance(error, ContentRejected) and error.reason not in DAMAGED_ON_THE_WAY:
        if source.registry is not None and ImageReference.parse(source.registry.image).is_pinned:
            return None
        return Backoff(limits.not_found_retry, limits.not_found_retry).delay(1)
    if isinstance(error, SourceDenied) and not isinstance(error, SecretAccessForbidden):
        return Backoff(limits.denied_retry, limits.denied_retry).delay(1)
    if isinstance(error, SourceNotFound):
        return Backoff(limits.not_found_first, limits.not_found_retry).delay(failures)
    if isinstance(error, SourceUnavailable):
        return max(backoff.delay(failures), error.retry_after or 0.0)
    if isinstance(error, StorageError):
        return Backoff(limits.retry_base, limits.storage_retry).delay(failures)
    return backoff.delay(failures)


_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FetchRunning:
    """Running for `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class FetchDone:
    """The module is in the store."""

    record: Record


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """The fetch failed. The next try is in `retry_in` seconds; None: no retry before a change."""

    error: AutoWasmError
    retry_in: float | None


@dataclass(slots=True, eq=False)
class _Job:
    request: FetchRequest
    resolve_key: str
    begun: float
    failures: int
    task: asyncio.Task[None] | None = None
    outcome: FetchDone | AutoWasmError | None = None
    retry_at: float | None = None
    outdated: bool = False
    """The Secret or the policy changed while the job ran: its failure may be outdated."""


class FetchJobs:
    """Jobs by object key. Calls `on_change` with the key when a job ends."""

    def __init__(
        self,
        fetcher: ArtifactFetcher,
        *,
        limits: FetchLimits,
        tasks: asyncio.TaskGroup,
        on_change: Callable[[ObjectKey], None],
    ) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._tasks = tasks
        self._on_change = on_change
        self._jobs: dict[ObjectKey, _Job] = {}

    def ensure(
        self, key: ObjectKey, request: FetchRequest, *, resolve_key: str = ""
    ) -> FetchRunning | FetchDone | FetchFailed:
        """The state of the job for this request and resolve key. Starts a job if there is none or a retry is due."""
        now = asyncio.get_running_loop().time()
        job = self._jobs.get(key)
        if job is not None and (job.request, job.resolve_key) != (request, resolve_key):
            self.forget(key)
            job = None
        if job is None or (job.retry_at is not None and now >= job.retry_at):
            job = self._begin(key, request, resolve_key, failures=job.failures if job else 0)
        if isinstance(job.outcome, FetchDone):
            return job.outcome
        if isinstance(job.outcome, AutoWasmError):
            retry_in = None if job.retry_at is None else max(job.retry_at - now, 0.0)
            return FetchFailed(job.outcome, retry_in)
        return FetchRunning(now - job.begun)

    def is_running(self, key: ObjectKey) -> bool:
        """True while a fetch for this object runs."""
        job = self._jobs.get(key)
        return job is not None and job.outcome is None

    def forget(self, key: ObjectKey) -> None:
        """Drop the job, and cancel it if it runs."""
        job = self._jobs.pop(key, None)
        if job is not None and job.task is not None:
            job.task.cancel()

    def drop_resolving(self) -> None:
        """Cancel all jobs that resolve a source: only a leader may do so."""
        for key in [key for key, job in self._jobs.items() if job.request.record is None]:
            self.forget(key)

    def retry_now(self, key: ObjectKey) -> None:
        """The Secret or the policy changed: retry a failed job at once, and a running job as soon as it fails."""
        job = self._jobs.get(key)
        if job is not None and isinstance(job.outcome, AutoWasmError):
            del self._jobs[key]
        elif job is not None:
            job.outdated = True

    def _begin(
        self, key: ObjectKey, request: FetchRequest, resolve_key: str, *, failures: int
    ) -> _Job:
        job = _Job(request, resolve_key, asyncio.get_running_loop().time(), failures)
        self._jobs[key] = job
        job.task = self._tasks.create_task(self._run(key, job), name=f"fetch {key}")
        return job

    async def _run(self, key: ObjectKey, job: _Job) -> None:
        with structlog.contextvars.bound_contextvars(key=str(key)):
            try:
                job.outcome = FetchDone(await self._fetcher.fetch(job.request))
            except AutoWasmError as error:
                self._failed(job, error)
            except Exception as error:  # supervised edge: a bug fails one job, not the process
                _log.exception("fetch failed unexpectedly")
                self._failed(job, AutoWasmError(f"internal error: {type(error).__name__}: {error}"))
        job.task = None
        self._on_change(key)

    def _failed(self, job: _Job, error: AutoWasmError) -> None:
        job.failures += 1
        job.outcome = error
        delay = retry_delay(
            error, failures=job.failures, source=job.request.source, limits=self._limits
        )
        if job.outdated:
            delay = 0.0
        if delay is not None:
            job.retry_at = asyncio.get_running_loop().time() + delay
        _log.warning("fetch failed", reason=error.reason, error=str(error), retry_in=delay)
