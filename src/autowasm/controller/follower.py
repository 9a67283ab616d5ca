"""Follower: what a replica that does not lead does for an AutoWasm: have what is published, or is about to be.

Invariants: it resolves nothing and writes nothing; it fetches what a record names, and only if the record is the spec's own.
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
"""Seconds until a module that is gone right after it was fetched is fetched again: a pause, as a full disk may go on."""


class Follower:
    """One for the process."""

    def __init__(self, jobs: FetchJobs, *, store: BlobStore, published: PublishedModules) -> None:
        self._jobs = jobs
        self._store = store
        self._published = published

    def follow(self, context: ReconcileContext, autowasm: AutoWasm | None) -> Result:
        """`autowasm` None: its spec cannot be read; what it published is known nevertheless."""
        remember_origins(self._published, context, autowasm)
        wanted = self._lacking(context, autowasm) if autowasm is not None else None
        if autowasm is None or wanted is None:
            self._jobs.forget(context.key)
            return Result()
        state = self._jobs.ensure(context.key, fetch_request(autowasm, record=wanted))
        if isinstance(state, FetchFailed):
            return Result(requeue_after=state.retry_in)
        if isinstance(state, FetchDone):  # and there may be another
            self._jobs.forget(context.key)
            return Result(requeue_after=0.0 if wanted.sha256 in self._store else GONE_RETRY)
        return Result()

    def _lacking(self, context: ReconcileContext, autowasm: AutoWasm) -> Record | None:
        """What is published first: proxies ask for it now."""
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
    """What to ask the fetcher for on behalf of this object."""
    return FetchRequest(
        namespace=autowasm.metadata.namespace,
        owner=f"{autowasm.metadata.namespace}/{autowasm.metadata.name}",
        source=autowasm.spec.filter.source,
        secret=autowasm.spec.secret,
        expected=autowasm.spec.filter.sha256,
        record=record,
        known=known,
    )
