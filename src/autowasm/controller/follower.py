"""Follower: how a replica that does not lead handles an AutoWasm: it fetches the modules that are or will be published.

Invariants: a follower resolves nothing and writes nothing; it fetches only a record that belongs to the spec's source.
"""

from autowasm.api.record import Record, belongs_to
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.published import PublishedModules
from autowasm.artifacts.source import FetchRequest
from autowasm.blobs.store import BlobStore
from autowasm.controller.fetchjobs import FetchDone, FetchFailed, FetchJobs
from autowasm.controller.reconcilecontext import ReconcileContext, remember_origins
from autowasm.kube.controller import Result

GONE_RETRY = 1.0
"""Seconds until a module that was evicted right after its fetch is fetched again; a full disk may persist."""


class Follower:
    """One per process."""

    def __init__(self, jobs: FetchJobs, *, store: BlobStore, published: PublishedModules) -> None:
        self._jobs = jobs
        self._store = store
        self._published = published

    def follow(self, context: ReconcileContext, autowasm: AutoWasm | None) -> Result:
        """`autowasm` None: the spec is invalid; its published modules are remembered all the same."""
        remember_origins(self._published, context, autowasm)
        wanted = self._lacking(context, autowasm) if autowasm is not None else None
        if autowasm is None or wanted is None:
            self._jobs.forget(context.key)
            return Result()
        state = self._jobs.ensure(context.key, fetch_request(autowasm, record=wanted))
        if isinstance(state, FetchFailed):
            return Result(requeue_after=state.retry_in)
        if isinstance(state, FetchDone):  # there may be another record
            self._jobs.forget(context.key)
            return Result(requeue_after=0.0 if wanted.sha256 in self._store else GONE_RETRY)
        return Result()

    def _lacking(self, context: ReconcileContext, autowasm: AutoWasm) -> Record | None:
        """The first missing record; the published one comes first, because sidecars request it now."""
        source = str(autowasm.spec.filter.source)
        for record in (context.live, context.told(autowasm)):
            if record is None or record.sha256 in self._store:
                continue
            if belongs_to(record, source):
                return record
        return None


def fetch_request(
    autowasm: AutoWasm, *, record: Record | None = None, known: Record | None = None
) -> FetchRequest:
    """The request to the fetcher for this object."""
    return FetchRequest(
        namespace=autowasm.metadata.namespace,
        owner=f"{autowasm.metadata.namespace}/{autowasm.metadata.name}",
        source=autowasm.spec.filter.source,
        secret=autowasm.spec.secret,
        expected=autowasm.spec.filter.sha256,
        record=record,
        known=known,
    )
