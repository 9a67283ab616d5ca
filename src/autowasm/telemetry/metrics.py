"""All Prometheus collectors, as one object bound to a registry that is passed in.

Invariants: labels are bounded, and no tenant controls their values: never a digest, a Pod or a host of a spec; the exception
is the names of the few objects in `collectors.py`; hosts have the names of `net/hosts.py`; units are base units; every
collector is defined here or in `collectors.py`. `make reference` writes docs/metrics.md from them.
"""

import platform
from collections.abc import Iterable
from importlib import metadata
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from autowasm.telemetry.collectors import (
    ControllerMetrics,
    EventMetrics,
    InformerMetrics,
    ObjectMetrics,
    RequestMetrics,
    WorkQueueMetrics,
)
from autowasm.telemetry.eventloop import BOUNDS, LoopTiming

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
            "Time of one stage of getting a module: resolve, fetch, and of that download, verify, store.",
            ["kind", "stage", "outcome"],
            buckets=_FETCH_BUCKETS,
            registry=r,
        )
        self.fetches = Counter(
            "autowasm_fetches_total",
            "Fetches that ended, by kind of source and reason (`Success` or a condition reason).",
            ["kind", "reason"],
            registry=r,
        )
        self.fetched_bytes = Counter(
            "autowasm_fetched_bytes_total", "Bytes received from sources.", ["kind"], registry=r
        )
        self.fetches_running = Gauge(
            "autowasm_fetches_running", "Fetches that hold a place now.", registry=r
        )
        self.fetches_waiting = Gauge(
            "autowasm_fetches_waiting", "Fetches that wait for a place.", registry=r
        )
        self.config_files_unreadable = Gauge(
            "autowasm_config_files_unreadable",
            "Files of the config directory that cannot be read or understood now (standalone mode).",
            registry=r,
        )
        self.circuit_breakers_open = Gauge(
            "autowasm_circuit_breakers_open",
            "Sources (host, repository, credential) whose requests are paused after repeated failures.",
            registry=r,
        )
        self.cache = Counter(
            "autowasm_blob_cache_requests_total",
            "Requests for a blob by where it was: disk; fetched for it from a peer or its origin; held until it came otherwise; unknown, failed.",
            ["kind"],
            registry=r,
        )
        self.responses = Counter(
            "autowasm_blob_responses_total",
            "Answers of the blob port.",
            ["method", "status"],
            registry=r,
        )
        self.served_bytes = Counter(
            "autowasm_blob_served_bytes_total", "Bytes of blobs handed to the kernel.", registry=r
        )
        self.sends = Gauge("autowasm_blob_sends", "Blob sends in flight.", registry=r)
        self.sends_aborted = Counter(
            "autowasm_blob_sends_aborted_total",
            "Sends that did not finish, by cause: client, deadline, storage, stop, or a fault of ours.",
            ["cause"],
            registry=r,
        )
        self.resends = Counter(
            "autowasm_resends_total",
            "EnvoyFilters changed so that sidecars fetch the module once more, by reason: errors (answers of wasmer), outage (no answer).",
            ["reason"],
            registry=r,
        )
        self.rollout_seconds = Histogram(
            "autowasm_rollout_duration_seconds",
            "From a changed EnvoyFilter to the last download of its module by a matched Pod's sidecar; told by the leader.",
            buckets=(1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
            registry=r,
        )
        self.rollout_pods = Gauge(
            "autowasm_rollout_pods",
            "Pods that AutoWasms match (once for each that does), by whether they fetched its module, or why not; told by the leader.",
            ["state"],
            registry=r,
        )
        self.rollout_unfinished = Gauge(
            "autowasm_rollout_unfinished",
            "AutoWasms whose module not all matched sidecars are known to have fetched; told by the leader.",
            registry=r,
        )
        self.polls = Counter(
            "autowasm_polls_total",
            "Sources asked because of `refreshInterval`, by outcome: unchanged, changed, outdated, or a condition reason; told by the leader.",
            ["outcome"],
            registry=r,
        )
        self.requests = RequestMetrics(r)
        self.peer_copies = Counter(
            "autowasm_peer_copies_total",
            "Modules asked of other replicas, by outcome: copied, absent, failed, no_room.",
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
            "autowasm_blobs_pinned", "Stored blobs that some EnvoyFilter names.", registry=r
        )
        self.blob_pinned_bytes = Gauge(
            "autowasm_blob_pinned_bytes", "Bytes of blobs that some EnvoyFilter names.", registry=r
        )
        self.blob_budget_bytes = Gauge(
            "autowasm_blob_budget_bytes", "Bytes that all blobs together may have.", registry=r
        )
        self.blobs_evicted = Counter(
            "autowasm_blobs_evicted_total",
            "Blobs removed, by reason: grace, budget, disk.",
            ["reason"],
            registry=r,
        )
        self.storage_free_bytes = Gauge(
            "autowasm_storage_free_bytes", "Free bytes of the cache's volume.", registry=r
        )
        self.storage_full = Gauge(
            "autowasm_storage_full", "1 while the cache has no room for a new module.", registry=r
        )
        self.storage_refusals = Counter(
            "autowasm_storage_refusals_total",
            "Modules refused for want of room, by reason: StorageFull, NamespaceShareExceeded.",
            ["reason"],
            registry=r,
        )
        self.blobs_damaged = Counter(
            "autowasm_blobs_damaged_total",
            "Stored blobs whose bytes no longer had their digest and were set aside.",
            registry=r,
        )
        self.unexpected_errors = Counter(
            "autowasm_unexpected_errors_total",
            "Faults of ours that were met outside of a reconcile, by work: resend, proof_of_load, pod_counts, poll. The work goes "
            "on with the other objects; the log has the traceback and the object.",
            ["work"],
            registry=r,
        )
        self.autowasms = Gauge(
            "autowasm_autowasms", "AutoWasm objects by phase.", ["phase"], registry=r
        )
        self.service_problem = Gauge(
            "autowasm_service_problem",
            "1 while something is wrong with the Service that EnvoyFilters name, by reason: ServiceNotFound and ServicePortMissing "
            "(nothing new is published), ServiceWithoutEndpoints.",
            ["reason"],
            registry=r,
        )
        self.leader = Gauge(
            "autowasm_leader", "1 while this replica holds the Lease, or is alone.", registry=r
        )
        build = Info(
            "autowasm_build", "What runs: versions of the program and of Python.", registry=r
        )
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
            "Full lists by resource and reason (`start`, or why a watch could not be resumed).",
            ["resource", "reason"],
            registry=r,
        )
        self._watches = Counter(
            "autowasm_reflector_watches_total",
            "Watches that ended, by resource and reason.",
            ["resource", "reason"],
            registry=r,
        )

    def _begin_at_zero(self) -> None:
        """Create the series of alerts at 0: a series that begins at 1 shows no increase."""
        for kind in ("disk", "peer", "origin", "held", "unknown", "failed"):
            self.cache.labels(kind)
        for status in ("200", "404", "503"):
            self.responses.labels("GET", status)
        for reason in ("StorageFull", "NamespaceShareExceeded"):
            self.storage_refusals.labels(reason)
        for work in ("resend", "proof_of_load", "pod_counts", "poll"):
            self.unexpected_errors.labels(work)

    def reflector(self, name: str) -> "ReflectorMetrics":
        """Implements `kube.reflector.ReflectorMetrics` for one resource."""
        return ReflectorMetrics(name, lists=self._lists, watches=self._watches)


def exemplar_of(owner: str) -> dict[str, str] | None:
    """The AutoWasm of an observation; None if its name is longer than an exemplar may be (OpenMetrics: 128)."""
    return {"autowasm": owner} if 0 < len(owner) <= _EXEMPLAR_LENGTH else None


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
    """Time for which the event loop was held. Counted by its selector, because a collector's method costs more than an iteration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.turns = LoopTiming()
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The values at the scrape."""
        turns = self.turns
        totals = list(accumulate(turns.counts))
        yield HistogramMetricFamily(
            "autowasm_loop_turn_duration_seconds",
            "Time for which the event loop was held between two waits: the delay of all others.",
            buckets=list(zip([*map(str, BOUNDS), "+Inf"], totals, strict=True)),
            sum_value=turns.seconds,
        )
        yield CounterMetricFamily(
            "autowasm_loop_blocked",
            "Turns of the event loop above 50 ms; the log has the stack of the moment.",
            value=turns.blocked,
        )
        longest, turns.longest = turns.longest, 0.0
        yield GaugeMetricFamily(
            "autowasm_loop_longest_turn_seconds",
            "Longest turn of the event loop since this was last asked for.",
            value=longest,
        )
