"""Collectors of single parts: informers, requests to sources, the work queue, reconciles, Events, and AutoWasms by name.

A part of `metrics.py`, with its invariants. Also: gauges are read at the scrape, so a change costs a dictionary entry; at most
`NAMED` objects are named, starting with those that have not been Synced for the longest time, and all others are only counted.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class InformerState(Protocol):
    """The part of an informer that metrics read."""

    @property
    def name(self) -> str:
        """Name of the resource."""

    @property
    def store(self) -> Sized:
        """The objects that it holds."""

    @property
    def last_event_age(self) -> float | None:
        """Seconds; None: no event yet, or the informer does not run."""


class InformerMetrics(Collector):
    """All informers of the process; several of one resource (one for each namespace) count as one.

    Lists and watches are counted by `ReflectorMetrics`.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._informers: tuple[InformerState, ...] = ()
        registry.register(self)

    def follow(self, informers: Iterable[InformerState]) -> None:
        """Set the informers."""
        self._informers = tuple(informers)

    def collect(self) -> Iterable[Metric]:
        """The values at the scrape."""
        objects = GaugeMetricFamily(
            "autowasm_informer_objects",
            "Objects in the informers' stores, by resource. Only the leader watches Pods.",
            labels=["resource"],
        )
        ages = GaugeMetricFamily(
            "autowasm_informer_last_event_age_seconds",
            "Time since the last watch event or bookmark from the API server, by watched resource.",
            labels=["resource"],
        )
        counts: defaultdict[str, int] = defaultdict(int)
        oldest: dict[str, float] = {}
        for informer in self._informers:
            counts[informer.name] += len(informer.store)
            age = informer.last_event_age
            if age is not None:
                oldest[informer.name] = max(age, oldest.get(informer.name, 0.0))
        for name, count in counts.items():
            objects.add_metric([name], count)
        for name, age in oldest.items():
            ages.add_metric([name], age)
        return (objects, ages)


class RequestMetrics:
    """Requests to sources by host. `sent` is passed to every client that sends requests.

    Counted where a request is sent, so redirects, token endpoints and retries count too. Invariant: the caller passes names
    from a bounded set (`net/hosts.py`). Thread-safe.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sent = Counter(
            "autowasm_source_requests_total",
            "Requests sent to registries and object servers, by host. Hosts that flags or the policy file name and well-known "
            "public registries have their own name; all others are `other`.",
            ["host"],
            registry=registry,
        )

    def sent(self, name: str) -> None:
        """Count one request."""
        self._sent.labels(name).inc()


_QUEUE_BUCKETS = (0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120)


class Queue(Protocol):
    """The part of a queue that metrics read."""

    @property
    def delayed(self) -> int:
        """Keys that are scheduled for later."""

    def running_times(self) -> list[float]:
        """Seconds that workers have been processing their keys."""


class WorkQueueMetrics:
    """Implements `kube.workqueue.QueueMetrics`, with client-go's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._depth = Gauge(
            "autowasm_workqueue_depth", "Keys that wait for a worker.", registry=registry
        )
        self._adds = Counter(
            "autowasm_workqueue_adds_total", "Keys added to the work queue.", registry=registry
        )
        self._retries = Counter(
            "autowasm_workqueue_retries_total", "Keys added again with backoff.", registry=registry
        )
        self._waited = Histogram(
            "autowasm_workqueue_queue_duration_seconds",
            "Time that a key waited for a worker.",
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self._worked = Histogram(
            "autowasm_workqueue_work_duration_seconds",
            "Time that a worker processed a key.",
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self._delayed = Gauge(
            "autowasm_workqueue_delayed", "Keys that are scheduled for later.", registry=registry
        )
        self._longest_running = Gauge(
            "autowasm_workqueue_longest_running_seconds",
            "Time for which the longest-running worker has been processing its key.",
            registry=registry,
        )

    def watch(self, queue: Queue) -> None:
        """Read from `queue` the values that it does not report."""
        self._delayed.set_function(lambda: queue.delayed)
        self._longest_running.set_function(lambda: max(queue.running_times(), default=0.0))

    def depth(self, keys: int) -> None:
        """`keys` wait for a worker."""
        self._depth.set(keys)

    def added(self) -> None:
        """A key was queued."""
        self._adds.inc()

    def taken(self, waited: float) -> None:
        """A worker took a key that had waited `waited` seconds."""
        self._waited.observe(waited)

    def finished(self, worked: float) -> None:
        """A worker finished a key."""
        self._worked.observe(worked)

    def retried(self) -> None:
        """A key was added with backoff."""
        self._retries.inc()


class ControllerMetrics:
    """Implements `kube.controller.ControllerMetrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "autowasm_reconcile_duration_seconds",
            "Duration of one reconcile, by result: success, requeue, error, terminal, panic.",
            ["result"],
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )

    def reconciled(self, result: str, seconds: float) -> None:
        """One reconcile ended."""
        self._seconds.labels(result).observe(seconds)


class EventMetrics:
    """Implements `kube.recorder.EventMetrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "autowasm_events_total",
            "Kubernetes Events by outcome: written, limited (too many for one object), overflow (the queue was full), failed.",
            ["outcome"],
            registry=registry,
        )

    def event(self, outcome: str) -> None:
        """Count one Event."""
        self._events.labels(outcome).inc()


class StagedRolloutMetrics:
    """Steps of staged rollouts (`controller/rollout/driver.py`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.steps = Counter(
            "autowasm_staged_rollout_steps_total",
            "Steps of staged rollouts that began. Reported by the leader.",
            registry=registry,
        )
        self.step_seconds = Histogram(
            "autowasm_staged_rollout_step_duration_seconds",
            "Time that a staged rollout spent in a step, by how the step ended: passed, aborted.",
            ["result"],
            buckets=(5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400),
            registry=registry,
        )
        for result in ("passed", "aborted"):  # a series that starts at 1 shows no increase
            self.step_seconds.labels(result)
        self.aborts = Counter(
            "autowasm_staged_rollout_aborts_total",
            "Staged rollouts that were aborted, by `status.rollout.reason`. Reported by the leader.",
            ["reason"],
            registry=registry,
        )


NAMED: Final = 100
"""AutoWasms that are not Synced and have a series of their own. More would not help operators, and each costs a series."""
TAG_AGES: Final = (60.0, 600.0, 3600.0, 86_400.0, 604_800.0, 2_592_000.0, 7_776_000.0)
"""Seconds: a minute to 90 days."""


@dataclass(frozen=True, slots=True)
class Unsynced:
    """An AutoWasm that is not Synced. `since`: seconds since the epoch."""

    phase: str
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A staged rollout whose step is not healthy. `since`: seconds since the epoch."""

    reason: str
    since: float


class ObjectMetrics(Collector):
    """AutoWasms by (namespace, name), as the reconciler reports them. Phases are counted by `Metrics.autowasms`."""

    def __init__(self, registry: CollectorRegistry, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._unsynced: dict[tuple[str, str], Unsynced] = {}
        self._resolved: dict[tuple[str, str], tuple[float, float]] = {}
        """When the source was resolved according to the status, and when that was confirmed last."""
        self._waiting: dict[tuple[str, str], Waiting] = {}
        registry.register(self)

    def synced(self, key: tuple[str, str]) -> None:
        """The object is Synced."""
        self._unsynced.pop(key, None)

    def unsynced(self, key: tuple[str, str], *, phase: str, reason: str) -> None:
        """The object is not Synced. A change of the phase does not reset the time."""
        before = self._unsynced.get(key)
        since = before.since if before else self._now()
        self._unsynced[key] = Unsynced(phase, reason, since)

    def resolved(self, key: tuple[str, str], at: float | None) -> None:
        """Its source, which names no digest, was last resolved at `at` (seconds since the epoch); None: it names a digest."""
        if at is None:
            self._resolved.pop(key, None)
        elif key not in self._resolved or self._resolved[key][0] != at:
            self._resolved[key] = (at, at)

    def confirmed(self, key: tuple[str, str], at: float) -> None:
        """Its source was checked at `at` and names the same content. This holds until it is resolved again."""
        if key in self._resolved:
            self._resolved[key] = (self._resolved[key][0], at)

    def waiting(self, key: tuple[str, str], reason: str | None) -> None:
        """Its staged rollout is waiting; None: it is not. A different reason does not reset the time."""
        if reason is None:
            self._waiting.pop(key, None)
            return
        before = self._waiting.get(key)
        self._waiting[key] = Waiting(reason, before.since if before else self._now())

    def forget(self, key: tuple[str, str]) -> None:
        """The object was deleted."""
        self._waiting.pop(key, None)
        self._unsynced.pop(key, None)
        self._resolved.pop(key, None)

    def describe(self) -> Iterable[Metric]:
        """The families, empty."""
        return (self._named([]), self._tag_ages([]), self._rollouts([]))

    def collect(self) -> Iterable[Metric]:
        """The values at the scrape."""
        longest = sorted(self._unsynced.items(), key=lambda item: (item[1].since, item[0]))
        now = self._now()
        ages = [max(now - at, 0.0) for _, at in self._resolved.values()]
        waiting = sorted(self._waiting.items(), key=lambda item: (item[1].since, item[0]))
        rollouts = self._rollouts(waiting[:NAMED])
        return (self._named(longest[:NAMED]), self._tag_ages(ages), rollouts)

    @staticmethod
    def _rollouts(objects: list[tuple[tuple[str, str], Waiting]]) -> Metric:
        family = GaugeMetricFamily(
            "autowasm_staged_rollout_waiting_since_timestamp_seconds",
            "Unix time since which the step of a staged rollout has not been healthy, by the reason why it waits. "
            f"Limited to the {NAMED} that have waited longest.",
            labels=["autowasm_namespace", "autowasm", "reason"],
        )
        for (namespace, name), state in objects:
            family.add_metric([namespace, name, state.reason], state.since)
        return family

    @staticmethod
    def _named(objects: list[tuple[tuple[str, str], Unsynced]]) -> Metric:
        family = GaugeMetricFamily(
            "autowasm_not_synced_since_timestamp_seconds",
            "Unix time since which an AutoWasm has not been Synced. "
            f"Limited to the {NAMED} AutoWasms that have not been Synced for the longest time.",
            labels=[
                "autowasm_namespace",
                "autowasm",
                "phase",
                "reason",
            ],  # `namespace` is the scraped Pod's
        )
        for (namespace, name), state in objects:
            family.add_metric([namespace, name, state.phase, state.reason], state.since)
        return family

    @staticmethod
    def _tag_ages(ages: list[float]) -> Metric:
        counts = [0] * (len(TAG_AGES) + 1)
        for age in ages:
            counts[bisect_left(TAG_AGES, age)] += 1
        bounds = [*map(str, TAG_AGES), "+Inf"]
        return GaugeHistogramMetricFamily(
            "autowasm_tag_age_seconds",
            "AutoWasms whose source names no digest, by the time since the source was last resolved to the module in use.",
            buckets=list(zip(bounds, accumulate(counts), strict=True)),
            gsum_value=sum(ages),
        )
