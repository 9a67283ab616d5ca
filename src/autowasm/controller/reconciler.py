"""StartupGate: when a fresh replica may call itself ready (ADR 15).

A reconciler around the reconciler that only watches. Not a health check of what comes later: a registry that goes down
afterwards never makes a replica unready. Invariant: ready means that each digest which some Envoy was told to fetch is
here, or was tried once, or the start-up deadline has passed.

AutoWasmReconciler: from what an AutoWasm says to the EnvoyFilter that makes it so. Level-based, idempotent.

Reads like the flow in docs/architecture.md. It does not fetch (`jobs.py` does, off this path), does not know whether it
runs on Kubernetes or over a directory, and writes nothing when nothing changed. Invariants: an EnvoyFilter is published
only while its module is in the store, checked (ADR 5); a failure never touches one that works (ADR 7); who does not lead
writes nothing and resolves nothing, but has what is published (`follower.py`).
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
    """Opens once every key that was given to `expect` is settled. `settled` is asked after each reconcile of such a key."""

    def __init__(
        self,
        reconciler: Reconciler[ObjectKey],
        *,
        settled: Callable[[ObjectKey], bool],
        report: Callable[[bool, str], None],
    ) -> None:
        self._reconciler = reconciler
        self._pending: dict[ObjectKey, None] | None = None
        """In order: the first ones are named."""
        self._settled = settled
        self._report = report
        self._opened = asyncio.Event()

    def expect(self, keys: Iterable[ObjectKey]) -> None:
        """What there is was read: wait for these."""
        if self._opened.is_set():  # what came after the deadline makes nobody unready again
            return
        self._pending = dict.fromkeys(sorted(keys))
        self._say()

    async def reconcile(self, key: ObjectKey, /) -> Result:
        """As the reconciler does."""
        result = await self._reconciler.reconcile(key)
        if self._pending and key in self._pending and self._settled(key):
            del self._pending[key]
            self._say()
        return result

    async def run(self, deadline: float) -> None:
        """Open at the latest after `deadline` seconds, then return."""
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
            self._report(False, f"{count} published modules are not here yet ({examples})")
        elif not self._opened.is_set():
            self._opened.set()
            self._report(True, why)


_log = structlog.get_logger(__name__)

NO_ROOM_RETRY = 30.0
"""Seconds until a module that is here, but is more than its namespace may publish, is looked at again."""
FOREIGN_RETRY = 15.0
"""Seconds between two looks at an EnvoyFilter of our name that is not ours, or that is still being deleted."""

FETCHING_SHOWN_AFTER = 1.0
"""Seconds. A shorter fetch goes straight to `Synced`: no writes for phases that nobody can see."""


class AutoWasmReconciler:
    """One for the process; `reconcile` is called for one key at a time by the work queue."""

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
        """`prepared` returns once a new leader has read what its first writes need; `resend` is `Healing.wanted`.

        `service_problem`: why sidecars could not fetch what would be published now; None: they can.
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
        """Make the world match the object of this name. Raises what the writes raise; the queue then retries."""
        try:
            if self._leadership.is_leading:
                async with self._leadership.scope():
                    if self._prepared is not None:
                        await self._prepared()
                    return await self._lead(key)
        except NotLeading:
            pass  # whoever leads now looks at every object anew
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
        """Before "no EnvoyFilter is in place" is believed of one that we put there, the API server is asked."""
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
        """Get the module that the spec asks for, and publish it once it is here."""
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
            return Result()  # we are told when it is known
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
            case FetchDone():  # evicted or damaged since: begin again
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
            return await self._failed(context, problem)  # the queue is told when that changes
        if not await self._is_replicated(context, record):
            return Result()  # we are told when it is
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
        else:  # what is in place stays; people want to know nevertheless (ADR 7)
            await self._failed(context, refused)
        self._jobs.forget(context.key)
        self._lost.forget(context.key)
        if self._replica_waiter is not None:
            self._replica_waiter.forget(context.key)
        return Result()

    async def _is_replicated(self, context: ReconcileContext, record: Record) -> bool:
        """Whether the other replicas have it, or were waited for long enough (ADR 14)."""
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
        )  # says what is wrong: worth more than that it is tried again
        if not retry and previous.phase is not Phase.FETCHING:
            live = context.in_place is not None
            await self._reporter.write(
                context, fetching_status(autowasm, live=live, previous=previous, now=self._now())
            )
        return Result()

    async def _not_written(self, context: ReconcileContext, error: AutoWasmError) -> Result:
        """Somebody else's doing goes into the status; raises what the queue shall retry."""
        if error.reason == REFUSED:  # nothing tells us when it would be taken
            await self._failed(context, error)
            raise error
        if error.reason not in WRITE_REASONS:
            raise error
        # The informer follows what has our label: no event tells that another's EnvoyFilter is handed over or deleted.
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
        """The object is gone."""
        self._jobs.forget(key)
        self._let_go(key)
        remember_orphan(self._published, key, self._publisher.left_behind(key))
        self._reporter.forget(key)

    def _let_go(self, key: ObjectKey) -> None:
        """What only a leader keeps of an object."""
        self._polls.forget(key)
        self._lost.forget(key)
        if self._pull_authorizer is not None:
            self._pull_authorizer.forget(key)
        if self._replica_waiter is not None:
            self._replica_waiter.forget(key)
