"""Collectors of the work queue and of the workers, with client-go's names, and of Events.

Not the queue. Invariant: as in `metrics.py`, of which this is a part.
"""

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_QUEUE_BUCKETS = (0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120)


class Queue(Protocol):
    """A queue, as far as metrics look at it."""

    @property
    def delayed(self) -> int:
        """Keys that become due later."""

    def running_times(self) -> list[float]:
        """Seconds that workers have had their keys."""


class WorkQueueMetrics:
    """What `kube.workqueue.QueueMetrics` asks for, as collectors with client-go's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._depth = Gauge("autowasm_workqueue_depth", "Keys that wait.", registry=registry)
        self._adds = Counter("autowasm_workqueue_adds_total", "Keys queued.", registry=registry)
        self._retries = Counter(
            "autowasm_workqueue_retries_total", "Keys queued again with backoff.", registry=registry
        )
        self._waited = Histogram(
            "autowasm_workqueue_queue_duration_seconds",
            "Time that a key waited for a worker.",
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self._worked = Histogram(
            "autowasm_workqueue_work_duration_seconds",
            "Time that a worker had a key.",
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self._delayed = Gauge(
            "autowasm_workqueue_delayed", "Keys that become due later.", registry=registry
        )
        self._longest_running = Gauge(
            "autowasm_workqueue_longest_running_seconds",
            "Time that a worker has had the key that it has had longest, now.",
            registry=registry,
        )

    def watch(self, queue: Queue) -> None:
        """Ask this queue for what is not told."""
        self._delayed.set_function(lambda: queue.delayed)
        self._longest_running.set_function(lambda: max(queue.running_times(), default=0.0))

    def depth(self, keys: int) -> None:
        """So many keys wait for a worker."""
        self._depth.set(keys)

    def added(self) -> None:
        """A key was queued."""
        self._adds.inc()

    def taken(self, waited: float) -> None:
        """A worker took a key that had waited so long."""
        self._waited.observe(waited)

    def finished(self, worked: float) -> None:
        """A worker is done with a key."""
        self._worked.observe(worked)

    def retried(self) -> None:
        """A key was added with backoff."""
        self._retries.inc()


class ControllerMetrics:
    """What `kube.controller.ControllerMetrics` asks for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "autowasm_reconcile_duration_seconds",
            "Time of one reconcile by result: success, requeue, error, terminal, panic.",
            ["result"],
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )

    def reconciled(self, result: str, seconds: float) -> None:
        """One call ended."""
        self._seconds.labels(result).observe(seconds)


class EventMetrics:
    """What `kube.recorder.EventMetrics` asks for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "autowasm_events_total",
            "Kubernetes Events by outcome: written; limited (too many of one object), overflow (a full queue), failed.",
            ["outcome"],
            registry=registry,
        )

    def event(self, outcome: str) -> None:
        """One Event."""
        self._events.labels(outcome).inc()
