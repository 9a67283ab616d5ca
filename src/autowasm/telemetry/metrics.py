"""All Prometheus collectors, as one object bound to a registry that is passed in.

Invariants: labels are bounded, and no tenant controls their values: never a digest, a Pod or a host of a spec; the exception
applies to the names of the few objects in `collectors.py`; hosts have the names of `net/hosts.py`; units are base units; every
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

from autowasm.performance.eventloop import BOUNDS, LoopTiming
from autowasm.reasons import Reason
from autowasm.telemetry.collectors import (
    ControllerMetrics,
    EventMetrics,
    InformerMetrics,
    ObjectMetrics,
    RequestMetrics,
    StagedRolloutMetrics,
    WorkQueueMetrics,
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
