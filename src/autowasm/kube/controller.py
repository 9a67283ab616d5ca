"""The controller of controller-runtime (`pkg/internal/controller`): workers take keys and call a Reconciler.

Invariants: the queue receives `done` for every key that a worker takes, also after a failure; a failure of one key never
ends a worker; only a cancelled worker stops in the middle of a reconcile.
"""

import asyncio
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import structlog

from autowasm.errors import AutoWasmError
from autowasm.flowcontrol import Backoff
from autowasm.kube.errors import ApiError, Conflict
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import ShutDown, WorkQueue

_log = structlog.get_logger(__name__)

K_contra = TypeVar("K_contra", contravariant=True)
K = TypeVar("K", bound=ObjectKey)

DEFAULT_DEADLINE: Final = 120.0
"""Seconds for one `reconcile`, which makes several API calls of 30 s each; controller-runtime's ReconciliationTimeout."""

CONFLICT_BACKOFF: Final = Backoff(base=0.005, maximum=10.0, jitter=0.5)
"""After a write conflict only: the informer brings the newer object within milliseconds."""


@dataclass(frozen=True, slots=True)
class Result:
    """The next step for the key: nothing, or another reconcile in `requeue_after` seconds. It replaces that of the previous result."""

    requeue_after: float | None = None

    def within(self, seconds: float | None) -> "Result":
        """The same, but the next reconcile is in `seconds` at the latest. None: unchanged."""
        if seconds is None or (self.requeue_after is not None and self.requeue_after <= seconds):
            return self
        return Result(seconds)


class TerminalError(Exception):
    """Raised by a reconcile: logged and counted, and not retried before the object changes."""


class Reconciler(Protocol[K_contra]):
    """Brings the cluster to the desired state of one object."""

    async def reconcile(self, key: K_contra, /) -> Result:
        """Level-based: receives the key, not the event. An exception leads to a retry with backoff."""


class ControllerMetrics(Protocol):
    """Metrics of a controller."""

    def reconciled(self, result: str, seconds: float) -> None:
        """One call ended: `success`, `requeue`, `error`, `terminal` or `panic` (an unexpected exception)."""


class _NoMetrics:
    def reconciled(self, result: str, seconds: float) -> None:
        """Nothing."""


class Controller(Generic[K]):
    """`workers` tasks over one queue. `run` returns when the queue is shut down and, if drained, empty."""

    def __init__(
        self,
        name: str,
        *,
        queue: WorkQueue[K],
        reconciler: Reconciler[K],
        workers: int = 4,
        deadline: float = DEFAULT_DEADLINE,
        metrics: ControllerMetrics | None = None,
    ) -> None:
        self.name = name
        self._queue = queue
        self._reconciler = reconciler
        self._workers = workers
        self._deadline = deadline
        self._metrics = metrics or _NoMetrics()

    async def run(self) -> None:
        """Work until `queue.shut_down`. Cancel it to stop at once."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"{self.name} worker {number}")

    async def _work(self) -> None:
        while True:
            try:
                key = await self._queue.get()
            except ShutDown:
                return
            try:
                await self._process(key)
            finally:
                self._queue.done(key)
            # A reconcile that never waits does not yield; a thousand in a row would block the event loop.
            await asyncio.sleep(0)

    async def _process(self, key: K) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(self._deadline) as deadline:
                result = await self._reconciler.reconcile(key)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A call inside the reconcile was cancelled, not this worker: an error like any other.
            outcome = self._failed(key, error, "a call inside the reconcile was cancelled")
        except Exception as error:  # the panic guard: one broken object must not stop the others
            expired = isinstance(error, TimeoutError) and deadline.expired()
            problem = f"no result within {self._deadline:g} s" if expired else None
            outcome = self._failed(key, error, problem)
        else:
            outcome = self._succeeded(key, result)
        self._metrics.reconciled(outcome, loop.time() - started)

    def _succeeded(self, key: K, result: Result) -> str:
        self._queue.forget(key)
        # An earlier result said when to look again; this reconcile has looked, and its own result is newer.
        self._queue.forget_delayed(key)
        if result.requeue_after is None:
            return "success"
        self._queue.add_after(key, result.requeue_after)
        return "requeue"

    def _failed(self, key: K, error: BaseException, problem: str | None) -> str:
        log = _log.bind(controller=self.name, key=str(key), error=problem or str(error))
        if isinstance(error, TerminalError):
            self._queue.forget(key)
            log.error("reconcile failed permanently")
            return "terminal"
        retry_after = getattr(error, "retry_after", None)
        delay = self._queue.add_rate_limited(
            key,
            at_least=retry_after if isinstance(retry_after, int | float) else 0.0,
            backoff=CONFLICT_BACKOFF if isinstance(error, Conflict) else None,
        )
        log = log.bind(retry_in=round(delay, 3), attempt=self._queue.num_requeues(key))
        if isinstance(error, Conflict):
            log.debug("reconcile hit a write conflict")
            return "error"
        if problem is not None or isinstance(error, AutoWasmError | ApiError | TimeoutError):
            log.warning("reconcile failed")
            return "error"
        log.error("reconcile failed unexpectedly", exc_info=error)
        return "panic"
