"""AutoWasmReconciler: from an AutoWasm to its EnvoyFilter and status. Level-based, idempotent.

It follows the flow in docs/architecture.md. `fetchjobs.py` fetches, outside the reconcile path; the mode (Kubernetes or a
directory) is hidden behind `interfaces.py`. StartupGate decides when a new replica is ready (ADR 15); it is not a health
check: a registry that fails later never makes a replica unready. Invariants: an EnvoyFilter is published only while its
checked module is in the store (ADR 5); a failure never touches a running filter (ADR 7); a follower writes and resolves
nothing, but stores the published modules (`follower.py`); without a change nothing is written.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import structlog

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import parsing
from autowasm.api.record import Record
from autowasm.api.status import ConditionType, Phase, utc_now
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.published import PublishedModules
from autowasm.blobs.store import BlobStore
from autowasm.controller.decision import GoneRecords, UseRecord, decide, explain_lost
from autowasm.controller.fetchjobs import FetchDone, FetchFailed, FetchJobs, FetchRunning
from autowasm.controller.follower import GONE_RETRY, Follower, fetch_request
from autowasm.controller.interfaces import Announce, AutoWasmLookup, Publisher, announce_nothing
from autowasm.controller.pods.podstatus import PodReport
from autowasm.controller.polling import NoPollResults, PollResults
from autowasm.controller.pullauthorization import PullAuthorizer, authorization_of
from autowasm.controller.reconcilecontext import ReconcileContext, remember_origins, remember_orphan
from autowasm.controller.replication import ReplicationState, ReplicaWaiter
from autowasm.controller.statusreporter import (
    FOREIGN_REASONS,
    REFUSED,
    WRITE_REASONS,
    StatusReporter,
    failed_status,
    fetching_status,
    replicating_status,
    synced_status,
)
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, SpecError, StorageError
from autowasm.kube.controller import Reconciler, Result
from autowasm.kube.leaderelection import AlwaysLeading, Leadership, NotLeading
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch
from autowasm.telemetry.metrics import Metrics


class StartupGate:
    """A reconciler around the reconciler. Opens when every key passed to `expect` is settled, or at the start-up deadline.

    Ready means that each module that an Envoy was told to fetch is stored or was tried once, or that the start-up deadline has
    passed. `settled` is called after each reconcile of such a key.
    """

    def __init__(
        self,
        reconciler: Reconciler[ObjectKey],
        *,
        settled: Callable[[ObjectKey], bool],
        report: Callable[[bool, str], None],
    ) -> None:
        self._reconciler = reconciler
        self._pending: dict[ObjectKey, None] | None = None
        """In order: the report names the first ones."""
        self._settled = settled
        self._report = report
        self._opened = asyncio.Event()

    def expect(self, keys: Iterable[ObjectKey]) -> None:
        """Everything was read: wait for these keys."""
        if self._opened.is_set():  # after the deadline nothing makes the replica unready
            return
        self._pending = dict.fromkeys(sorted(keys))
        self._say()

    async def reconcile(self, key: ObjectKey, /) -> Result:
        """Reconcile, then update the gate."""
        result = await self._reconciler.reconcile(key)
        if self._pending and key in self._pending and self._settled(key):
            del self._pending[key]
            self._say()
        return result

    async def run(self, deadline: float) -> None:
        """Open after `deadline` seconds at the latest, then return."""
        try:
            async with asyncio.timeout(deadline):
                await self._opened.wait()
        except TimeoutError:
            self._pending = {}
            self._say(f"start-up deadline of {deadline:g} s passed")

    def _say(self, why: str = "") -> None:
        if self._pending:
            count = len(self._pending)
            examples = ", ".join(str(key) for key in islice(self._pending, 3))
            self._report(False, f"{count} published modules are not stored yet ({examples})")
        elif not self._opened.is_set():
            self._opened.set()
            self._report(True, why)


_log = structlog.get_logger(__name__)

NO_ROOM_RETRY = 30.0
"""Seconds before another try for a stored module that exceeds its namespace's quota."""
FOREIGN_RETRY = 15.0
"""Seconds between two checks of a foreign or terminating EnvoyFilter that has our name."""

FETCHING_SHOWN_AFTER = 1.0
"""Seconds. After a shorter fetch the status changes directly to `Synced`: no write for a phase too short to see."""


class AutoWasmReconciler:
    """One per process; the work queue calls `reconcile` for one key at a time."""

    def __init__(
        self,
        *,
        objects: AutoWasmLookup,
        publisher: Publisher,
        jobs: FetchJobs,
        store: BlobStore,
        published: PublishedModules,
        envoy: EnvoyFetch,
        metrics: Metrics,
        check: Callable[[AutoWasm], None] = lambda _: None,
        pull_authorizer: PullAuthorizer | None = None,
        admit: Callable[[str, str, Sha256Hex], None] = lambda _owner, _namespace, _sha256: None,
        pods: Callable[[ObjectKey], Awaitable[PodReport | None]] | None = None,
        announce: Announce = announce_nothing,
        leadership: Leadership | None = None,
        prepared: Callable[[], Awaitable[None]] | None = None,
        replica_waiter: ReplicaWaiter | None = None,
        resend: Callable[[ObjectKey, Mapping[str, Any] | None, str], int] = lambda *_: 0,
        polls: PollResults | None = None,
        service_problem: Callable[[], AutoWasmError | None] = lambda: None,
        now: Callable[[], str] = utc_now,
    ) -> None:
        """`prepared` returns when a new leader has read what its first writes need; `resend` is `Resender.wanted`.

        `service_problem`: why sidecars could not fetch a module that is published now; None: they can.
        """
        self._service_problem = service_problem
        self._objects = objects
        self._publisher = publisher
        self._jobs = jobs
        self._store = store
        self._published = published
        self._envoy = envoy
        self._check = check
        self._pull_authorizer = pull_authorizer
        self._admit = admit
        self._now = now
        self._leadership = leadership or AlwaysLeading()
        self._prepared = prepared
        self._replica_waiter = replica_waiter
        self._resend = resend
        self._reporter = StatusReporter(publisher, metrics=metrics, pods=pods, announce=announce)
        self._follower = Follower(jobs, store=store, published=published)
        self._lost = GoneRecords()
        self._polls = polls or NoPollResults()

    async def reconcile(self, key: ObjectKey) -> Result:
        """Bring the cluster to the desired state of this object. Raises the errors of writes; the queue then retries."""
        try:
            if self._leadership.is_leading:
                async with self._leadership.scope():
                    if self._prepared is not None:
                        await self._prepared()
                    return await self._lead(key)
        except NotLeading:
            pass  # the new leader reconciles every object
        return self._follow(key)

    def _follow(self, key: ObjectKey) -> Result:
        self._let_go(key)
        found = self._objects.lookup(key)
        if found is None:
            self._publisher.forget(key)
            self._forget(key)
            return Result()
        context = self._context(key, found.document)
        self._reporter.seen(key, context.previous)
        try:
            return self._follower.follow(context, parsing.parse(found.document))
        except SpecError:
            return self._follower.follow(context, None)

    async def _lead(self, key: ObjectKey) -> Result:
        found = self._objects.lookup(key)
        if found is None:
            await self._publisher.retract(key)
            self._forget(key)
            return Result()
        context = self._context(key, found.document)
        try:
            context = await self._complete(context)
        except AutoWasmError as error:
            return await self._not_written(context, error)
        try:
            if found.problem is not None:
                raise found.problem
            autowasm = parsing.parse(found.document)
            self._check(autowasm)
        except SpecError as error:
            self._jobs.forget(key)
            self._polls.forget(key)
            remember_origins(self._published, context, None)
            return await self._failed(context, error)
        remember_origins(self._published, context, autowasm)
        if autowasm.metadata.deletion_timestamp is not None:
            self._jobs.forget(key)
            self._polls.forget(key)
            return Result()
        return await self._pursue(context, autowasm)

    def _context(self, key: ObjectKey, document: Mapping[str, Any]) -> ReconcileContext:
        return ReconcileContext.of(key, document, live=self._publisher.published(key))

    async def _complete(self, context: ReconcileContext) -> ReconcileContext:
        """Read the EnvoyFilter from the API server before treating one that we published as absent."""
        published = context.previous.condition(ConditionType.PUBLISHED)
        if context.digests or published is None or published.status != "True":
            return context
        await self._publisher.find(context.key, context.document)
        return self._context(context.key, context.document)

    def settled(self, key: ObjectKey) -> bool:
        """True unless the module of a published EnvoyFilter is being fetched for the first time (ADR 15)."""
        live = self._publisher.published(key)
        digests = envoyfilters.digests_of(live) if live is not None else ()
        stored = all(sha256 in self._store for sha256 in digests)
        return stored or not self._jobs.is_running(key)

    async def _pursue(self, context: ReconcileContext, autowasm: AutoWasm) -> Result:
        """Get the module that the spec names, and publish it when it is stored."""
        key = context.key
        decision = decide(
            autowasm,
            live=context.live,
            previous=context.previous,
            lost=self._lost.of(key),
            found=self._polls.found(key, autowasm),
        )
        authorization = authorization_of(self._pull_authorizer, context, autowasm, decision)
        if isinstance(authorization, AutoWasmError):
            if self._lost.give_up(context, decision, authorization):
                return Result(requeue_after=0.0)
            return await self._failed(context, authorization)
        if not authorization:
            return Result()  # the verdict queues the key
        if isinstance(decision, UseRecord) and decision.record.sha256 in self._store:
            return await self._publish(context, autowasm, decision.record)
        if isinstance(decision, UseRecord):
            state = self._jobs.ensure(key, fetch_request(autowasm, record=decision.record))
        else:
            request = fetch_request(autowasm, known=context.live)
            state = self._jobs.ensure(key, request, resolve_key=decision.resolve_key)
        match state:
            case FetchDone(record) if record.sha256 in self._store:
                return await self._publish(context, autowasm, record)
            case FetchDone():  # evicted or damaged since: fetch again
                self._jobs.forget(key)
                return Result(requeue_after=GONE_RETRY)
            case FetchRunning(seconds):
                return await self._fetching(context, autowasm, seconds)
            case FetchFailed(error, retry_in):
                if self._lost.give_up(context, decision, error):
                    return Result(requeue_after=0.0)
                error = explain_lost(decision, error)
                return await self._failed(context, error, retry_in=retry_in)

    async def _publish(
        self, context: ReconcileContext, autowasm: AutoWasm, record: Record
    ) -> Result:
        try:
            self._admit(str(context.key), context.key.namespace, record.sha256)
        except StorageError as error:
            return await self._failed(context, error, retry_in=NO_ROOM_RETRY)
        remember_origins(self._published, context, autowasm, record)
        if (problem := self._service_problem()) is not None:
            return await self._failed(context, problem)  # a change of it queues all keys
        if not await self._is_replicated(context, record):
            return Result()  # the end of the wait queues the key
        resend = self._resend(context.key, self._publisher.published(context.key), record.sha256)
        wanted = envoyfilters.render(autowasm, record, self._envoy, resend=resend)
        try:
            changed = await self._publisher.publish(context.key, context.document, wanted)
        except AutoWasmError as error:
            return await self._not_written(context, error)
        if changed:
            _log.info(
                "envoyfilter published",
                key=str(context.key),
                digest=record.sha256,
                previous_digest=context.in_place,
            )
        refused = self._polls.published(context.key, autowasm, record)
        if refused is None:
            status = synced_status(autowasm, record, previous=context.previous, now=self._now())
            await self._reporter.write(context, status)
        else:  # the module in place stays, and the status has the error (ADR 7)
            await self._failed(context, refused)
        self._jobs.forget(context.key)
        self._lost.forget(context.key)
        if self._replica_waiter is not None:
            self._replica_waiter.forget(context.key)
        return Result()

    async def _is_replicated(self, context: ReconcileContext, record: Record) -> bool:
        """Whether the other replicas have the module, or the wait for them is over (ADR 14)."""
        if self._replica_waiter is None or context.digests == (record.sha256,):
            return True
        state = self._replica_waiter.state(context.key, record.sha256)
        if state is ReplicationState.TELL:
            live, previous = context.in_place is not None, context.previous
            status = replicating_status(record, live=live, previous=previous, now=self._now())
            await self._reporter.write(context, status)
            self._replica_waiter.told(context.key)
        return state is ReplicationState.DONE

    async def _fetching(
        self, context: ReconcileContext, autowasm: AutoWasm, seconds: float
    ) -> Result:
        if seconds < FETCHING_SHOWN_AFTER:
            return Result(requeue_after=FETCHING_SHOWN_AFTER - seconds)
        previous = context.previous
        retry = (
            previous.phase in {Phase.FAILED, Phase.DEGRADED}
            and previous.observed_generation == autowasm.metadata.generation
        )  # the error in the status is worth more than the phase of a retry
        if not retry and previous.phase is not Phase.FETCHING:
            live = context.in_place is not None
            await self._reporter.write(
                context, fetching_status(autowasm, live=live, previous=previous, now=self._now())
            )
        return Result()

    async def _not_written(self, context: ReconcileContext, error: AutoWasmError) -> Result:
        """Write the failed write to the status; raise the errors that the queue retries."""
        if error.reason == REFUSED:  # no event reports when it would be accepted
            await self._failed(context, error)
            raise error
        if error.reason not in WRITE_REASONS:
            raise error
        # The informer only sees our label: no event reports that a foreign EnvoyFilter is handed over or deleted.
        retry_in = FOREIGN_RETRY if error.reason in FOREIGN_REASONS else None
        return await self._failed(context, error, retry_in=retry_in)

    async def _failed(
        self, context: ReconcileContext, error: AutoWasmError, *, retry_in: float | None = None
    ) -> Result:
        generation = context.document.get("metadata", {}).get("generation")
        status = failed_status(
            error,
            generation=generation if isinstance(generation, int) else 0,
            in_place=context.in_place,
            previous=context.previous,
            now=self._now(),
        )
        await self._reporter.write(context, status)
        return Result(requeue_after=retry_in)

    def _forget(self, key: ObjectKey) -> None:
        """The object was deleted."""
        self._jobs.forget(key)
        self._let_go(key)
        remember_orphan(self._published, key, self._publisher.left_behind(key))
        self._reporter.forget(key)

    def _let_go(self, key: ObjectKey) -> None:
        """Drop the state that only a leader keeps."""
        self._polls.forget(key)
        self._lost.forget(key)
        if self._pull_authorizer is not None:
            self._pull_authorizer.forget(key)
        if self._replica_waiter is not None:
            self._replica_waiter.forget(key)
