"""All Prometheus collectors, as one object bound to a registry that is passed in.

Invariants: labels are bounded, and no tenant controls their values: never a digest, a Pod or a host of a spec, except for the names of
at most `NAMED` objects, starting with those that have not been Synced for the longest time; hosts have the names of `net/hosts.py`;
units are base units; gauges are read at the scrape, so a change costs a dictionary entry; every collector is defined here. `make
reference` writes docs/metrics.md from them.
"""

import platform
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from importlib import metadata
from itertools import accumulate
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from autowasm.performance.eventloop import BOUNDS, LoopTiming
from autowasm.reasons import Reason


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


class ReflectorMetrics:
    """Lists and watches of one resource."""

    def __init__(self, name: str, *, lists: Counter, watches: Counter) -> None:
        self._name = name
        self._lists = lists
        self._watches = watches

    def listed(self, reason: str, objects: int) -> None:  # the size is in InformerMetrics
        """A list was fetched."""
        self._lists.labels(self._name, reason).inc()

    def watch_ended(self, reason: str) -> None:
        """A watch ended."""
        self._watches.labels(self._name, reason).inc()


class LoopMetrics(Collector):
    """Time for which the event loop was blocked. Counted by its selector, because a collector's method costs more than an iteration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.iterations = LoopTiming()
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The values at the scrape."""
        iterations = self.iterations
        totals = list(accumulate(iterations.counts))
        yield HistogramMetricFamily(
            "autowasm_loop_turn_duration_seconds",
            "Duration of one iteration of the event loop. It delays all other work.",
            buckets=list(zip([*map(str, BOUNDS), "+Inf"], totals, strict=True)),
            sum_value=iterations.seconds,
        )
        yield CounterMetricFamily(
            "autowasm_loop_blocked",
            "Iterations of the event loop longer than 50 ms. The log has the stack (`loop blocked`).",
            value=iterations.blocked,
        )
        longest, iterations.longest = iterations.longest, 0.0
        yield GaugeMetricFamily(
            "autowasm_loop_longest_turn_seconds",
            "Longest iteration of the event loop since the last scrape.",
            value=longest,
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


_VERSION = metadata.version("autowasm")  # at import: it reads files
_FETCH_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_EXEMPLAR_LENGTH = 100


class Metrics:
    """The collectors. One instance for each process (each test) and registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self.fetch_seconds = Histogram(
            "autowasm_fetch_duration_seconds",
            "Duration of one stage of a fetch: check (polls only), resolve, fetch, or a part of fetch: download, verify, store.",
            ["kind", "stage", "outcome"],
            buckets=_FETCH_BUCKETS,
            registry=r,
        )
        self.fetches = Counter(
            "autowasm_fetches_total",
            "Completed fetches, by kind of source and reason (`Success` or a condition reason).",
            ["kind", "reason"],
            registry=r,
        )
        self.fetched_bytes = Counter(
            "autowasm_fetched_bytes_total", "Bytes received from sources.", ["kind"], registry=r
        )
        self.fetches_running = Gauge("autowasm_fetches_running", "Running fetches.", registry=r)
        self.fetches_waiting = Gauge(
            "autowasm_fetches_waiting",
            "Fetches that wait for a slot in the fetch limiter.",
            registry=r,
        )
        self.config_files_unreadable = Gauge(
            "autowasm_config_files_unreadable",
            "Files in the config directory that cannot be read or parsed (standalone mode).",
            registry=r,
        )
        self.circuit_breakers_open = Gauge(
            "autowasm_circuit_breakers_open",
            "Sources (host, repository, credential) whose requests are paused after repeated failures.",
            registry=r,
        )
        self.cache = Counter(
            "autowasm_blob_cache_requests_total",
            "Requests for a blob, by where it came from: disk; peer or origin (fetched on demand); held (the request waited until the blob was stored); unknown (404); failed.",
            ["kind"],
            registry=r,
        )
        self.responses = Counter(
            "autowasm_blob_responses_total",
            "Responses of the blob port.",
            ["method", "status"],
            registry=r,
        )
        self.served_bytes = Counter(
            "autowasm_blob_served_bytes_total", "Bytes of blobs written to sockets.", registry=r
        )
        self.sends = Gauge("autowasm_blob_sends", "Blob sends in flight.", registry=r)
        self.sends_aborted = Counter(
            "autowasm_blob_sends_aborted_total",
            "Blob sends that were aborted, by cause: client, deadline, storage, stop, fault (a bug in wasmer).",
            ["cause"],
            registry=r,
        )
        self.resends = Counter(
            "autowasm_resends_total",
            "EnvoyFilters that were changed so that sidecars fetch the module again, by reason: errors (wasmer sent error responses), outage (no replica responded).",
            ["reason"],
            registry=r,
        )
        self.rollout_seconds = Histogram(
            "autowasm_rollout_duration_seconds",
            "Time from the change of an EnvoyFilter until the sidecars of all matched Pods have downloaded its module. Reported by the leader.",
            buckets=(1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
            registry=r,
        )
        self.rollout_pods = Gauge(
            "autowasm_rollout_pods",
            "Pods that AutoWasms match, by whether they fetched the module, or why not. A Pod counts once for each AutoWasm. Reported by the leader.",
            ["state"],
            registry=r,
        )
        self.rollout_unfinished = Gauge(
            "autowasm_rollout_unfinished",
            "AutoWasms whose module is not known to have been fetched by all matched sidecars. Reported by the leader.",
            registry=r,
        )
        self.polls = Counter(
            "autowasm_polls_total",
            "Polls of sources with a `refreshInterval`, by outcome: unchanged, changed, outdated, or a condition reason. Reported by the leader.",
            ["outcome"],
            registry=r,
        )
        self.requests = RequestMetrics(r)
        self.peer_copies = Counter(
            "autowasm_peer_copies_total",
            "Attempts to copy a module from another replica, by outcome: copied, absent, failed, no_room.",
            ["outcome"],
            registry=r,
        )
        self.peer_bytes = Counter(
            "autowasm_peer_bytes_total", "Bytes of modules copied from other replicas.", registry=r
        )
        self.held = Gauge(
            "autowasm_blob_requests_held", "Requests that wait for a blob.", registry=r
        )
        self.blobs = Gauge("autowasm_blobs", "Blobs in the store.", registry=r)
        self.blob_bytes = Gauge("autowasm_blob_bytes", "Bytes of blobs in the store.", registry=r)
        self.blobs_pinned = Gauge(
            "autowasm_blobs_pinned",
            "Stored blobs that are pinned: an EnvoyFilter or a history names them.",
            registry=r,
        )
        self.blob_pinned_bytes = Gauge(
            "autowasm_blob_pinned_bytes", "Bytes of pinned blobs.", registry=r
        )
        self.blob_budget_bytes = Gauge(
            "autowasm_blob_budget_bytes", "Disk budget for all blobs, in bytes.", registry=r
        )
        self.blobs_evicted = Counter(
            "autowasm_blobs_evicted_total",
            "Evicted blobs, by reason: grace (not used within the grace period), budget, disk (the volume is full).",
            ["reason"],
            registry=r,
        )
        self.storage_free_bytes = Gauge(
            "autowasm_storage_free_bytes", "Free bytes on the volume of the cache.", registry=r
        )
        self.storage_full = Gauge(
            "autowasm_storage_full", "1 while the cache has no space for a new module.", registry=r
        )
        self.storage_refusals = Counter(
            "autowasm_storage_refusals_total",
            "Modules that were rejected for lack of space, by reason: StorageFull, NamespaceShareExceeded.",
            ["reason"],
            registry=r,
        )
        self.blobs_damaged = Counter(
            "autowasm_blobs_damaged_total",
            "Stored blobs whose bytes no longer matched their digest. They are quarantined.",
            registry=r,
        )
        self.unexpected_errors = Counter(
            "autowasm_unexpected_errors_total",
            "Unexpected errors (bugs in wasmer) outside of reconciles, by work: resend, proof_of_load, proof_of_run, pod_counts, poll, rollout. Processing "
            "continues with the next object. The log has the traceback and the object.",
            ["work"],
            registry=r,
        )
        self.autowasms = Gauge("autowasm_autowasms", "AutoWasms by phase.", ["phase"], registry=r)
        self.service_problem = Gauge(
            "autowasm_service_problem",
            "1 while the Service that EnvoyFilters name is not usable, by reason: ServiceNotFound and ServicePortMissing "
            "(nothing new is published), ServiceWithoutEndpoints.",
            ["reason"],
            registry=r,
        )
        self.leader = Gauge(
            "autowasm_leader",
            "1 while this replica holds the Lease, or runs without leader election.",
            registry=r,
        )
        self._make_preflight(r)
        self._make_sidecars(r)
        build = Info("autowasm_build", "Versions of wasmer and Python.", registry=r)
        build.info({"version": _VERSION, "python": platform.python_version()})
        self._begin_at_zero()
        self.objects = ObjectMetrics(r)
        self.informers = InformerMetrics(r)
        self.workqueue = WorkQueueMetrics(r)
        self.controller = ControllerMetrics(r)
        self.events = EventMetrics(r)
        self.loop = LoopMetrics(r)
        self._lists = Counter(
            "autowasm_reflector_lists_total",
            "Full lists, by resource and reason (`start`, or why a watch could not be resumed).",
            ["resource", "reason"],
            registry=r,
        )
        self._watches = Counter(
            "autowasm_reflector_watches_total",
            "Ended watches, by resource and reason.",
            ["resource", "reason"],
            registry=r,
        )

    def _make_preflight(self, r: CollectorRegistry) -> None:
        self.preflight_judgements = Counter(
            "autowasm_preflight_judgements_total",
            "Modules that were run with their configuration before publication, by outcome: starts, refused, doubtful, "
            "unknown (no verdict). Remembered verdicts are not counted.",
            ["outcome"],
            registry=r,
        )
        self.preflight_failures = Counter(
            "autowasm_preflight_failures_total",
            "Pre-flights without a verdict, by reason. It is not the module's fault: the child process crashed, exceeded a limit "
            "or could not be started.",
            ["reason"],
            registry=r,
        )
        self.preflight_seconds = Histogram(
            "autowasm_preflight_duration_seconds",
            "Duration of a child process of the pre-flight, by work: compile, run.",
            ["work"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=r,
        )
        self.preflight_children = Gauge(
            "autowasm_preflight_running", "Pre-flights that run.", registry=r
        )
        self.preflight_waiting = Gauge(
            "autowasm_preflight_waiting", "Pre-flights that wait for a child process.", registry=r
        )
        self.preflight_restarts = Counter(
            "autowasm_preflight_server_restarts_total",
            "Restarts of the fork server after it ended unexpectedly. The fork server starts the child processes of the pre-flight.",
            registry=r,
        )
        self.preflight_code_bytes = Gauge(
            "autowasm_preflight_code_bytes", "Bytes of compiled modules on disk.", registry=r
        )
        self.preflight_code_damaged = Counter(
            "autowasm_preflight_code_damaged_total",
            "Compiled modules on disk whose bytes had changed. They are compiled again.",
            registry=r,
        )

    def _make_sidecars(self, r: CollectorRegistry) -> None:
        self.running_pods = Gauge(
            "autowasm_running_pods",
            "Pods with a sidecar that AutoWasms match, by whether the module runs in it, or why not. A Pod counts once for each AutoWasm. Reported by the leader.",
            ["state"],
            registry=r,
        )
        self.running_unsettled = Gauge(
            "autowasm_running_unsettled",
            "AutoWasms whose sidecars are being read, because the filter or Pods changed. Reported by the leader.",
            registry=r,
        )
        self.staged_rollouts = StagedRolloutMetrics(r)
        self.sidecar_reads = Counter(
            "autowasm_sidecar_reads_total",
            "Attempts to read sidecars' statistics, by result: read, or the reason for a failure: no_sidecar, no_address, shared_address "
            "(no request was sent); refused, timeout, broken, status, too_large, not_prometheus. Reported by the leader.",
            ["result"],
            registry=r,
        )
        self.sidecar_read_seconds = Histogram(
            "autowasm_sidecar_read_duration_seconds",
            "Duration of one request for a sidecar's statistics, failed ones included. Reported by the leader.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=r,
        )

    def _begin_at_zero(self) -> None:
        """Create the series of alerts at 0: a series that begins at 1 shows no increase."""
        for kind in ("disk", "peer", "origin", "held", "unknown", "failed"):
            self.cache.labels(kind)
        for status in ("200", "404", "503"):
            self.responses.labels("GET", status)
        for reason in (Reason.STORAGE_FULL, Reason.NAMESPACE_SHARE_EXCEEDED):
            self.storage_refusals.labels(reason)
        for work in ("resend", "proof_of_load", "proof_of_run", "pod_counts", "poll", "rollout"):
            self.unexpected_errors.labels(work)
        for outcome in ("starts", "refused", "doubtful", "unknown"):
            self.preflight_judgements.labels(outcome)

    def reflector(self, name: str) -> ReflectorMetrics:
        """Implements `kube.reflector.ReflectorMetrics` for one resource."""
        return ReflectorMetrics(name, lists=self._lists, watches=self._watches)


def exemplar_of(owner: str) -> dict[str, str] | None:
    """The AutoWasm of an observation; None if its name is longer than an exemplar may be (OpenMetrics: 128)."""
    return {"autowasm": owner} if 0 < len(owner) <= _EXEMPLAR_LENGTH else None
