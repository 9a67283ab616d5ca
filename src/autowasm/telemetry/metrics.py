"""All Prometheus collectors, as one object bound to a registry that is passed in.

Not a place for logic. Invariant: labels are bounded (never a digest, a Pod, an object's name or a host that a tenant
chooses), units are base units, and every collector is defined here and nowhere else.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FETCH_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_QUEUE_BUCKETS = (0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120)


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
        self.breakers_open = Gauge(
            "autowasm_breakers_open",
            "Sources (host, repository, credential) that are not asked for a while after failures.",
            registry=r,
        )
        self.cache = Counter(
            "autowasm_blob_cache_requests_total",
            "Requests for a blob by how it was found: disk, held, unknown, failed.",
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
            "Sends that did not finish, by cause: client, deadline, storage, stop.",
            ["cause"],
            registry=r,
        )
        self.heals = Counter(
            "autowasm_heals_total",
            "EnvoyFilters given to their proxies once more, by reason: errors (that we answered), outage (nobody answered).",
            ["reason"],
            registry=r,
        )
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
        self.autowasms = Gauge(
            "autowasm_autowasms", "AutoWasm objects by phase.", ["phase"], registry=r
        )
        self.leader = Gauge(
            "autowasm_leader", "1 while this replica holds the Lease, or is alone.", registry=r
        )
        self.workqueue = WorkQueueMetrics(r)
        self.controller = ControllerMetrics(r)
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

    def reflector(self, name: str) -> "ReflectorMetrics":
        """What `kube.reflector.ReflectorMetrics` asks for, for one resource."""
        return ReflectorMetrics(name, lists=self._lists, watches=self._watches)


class ReflectorMetrics:
    """The reflector of one resource."""

    def __init__(self, name: str, *, lists: Counter, watches: Counter) -> None:
        self._name = name
        self._lists = lists
        self._watches = watches

    def listed(self, reason: str, objects: int) -> None:  # the store's size is told elsewhere
        """A list was fetched."""
        self._lists.labels(self._name, reason).inc()

    def watch_ended(self, reason: str) -> None:
        """A watch ended."""
        self._watches.labels(self._name, reason).inc()


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
