"""AutoWasmReconciler: turns an AutoWasm into its EnvoyFilter and status. Level-based, idempotent.

It follows the flow in docs/architecture.md. `fetchjobs.py` fetches, outside the reconcile path; the mode (Kubernetes or a
directory) is hidden behind `interfaces.py`. Invariants: an EnvoyFilter is published only while its checked module is in the
store (ADR 5); a failure never touches a running filter (ADR 7); a follower writes and resolves nothing, and fetches only
records that belong to the spec's source; without a change nothing is written.

StartupGate determines when a new replica becomes ready (ADR 15): each module that an Envoy must fetch is stored or one fetch of it
was tried, or the start-up deadline has passed. It is not a health check. Invariant: an open gate stays open, so a registry that
fails later never makes a replica unready.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec
import structlog

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import validation
from autowasm.api.record import Record, belongs_to
from autowasm.api.status import ConditionType, Phase, Status, utc_now
from autowasm.api.v1alpha1 import AutoWasm, Rollout
from autowasm.artifacts.published import PublishedModules
from autowasm.blobs.store import BlobStore
from autowasm.controller.decision import GoneRecords, UseRecord, decide, explain_lost
from autowasm.controller.fetchjobs import FetchDone, FetchFailed, FetchJobs, FetchRunning
from autowasm.controller.interfaces import AutoWasmLookup, Lookup, Publisher
from autowasm.controller.polling import NoPollResults, PollResults
from autowasm.controller.pullauthorization import PullAuthorizer, authorization_of
from autowasm.controller.reconcilecontext import (
    ReconcileContext,
    fetch_request,
    remember_origins,
    remember_orphan,
)
from autowasm.controller.replication import Prefetcher, ReplicationState, ReplicaWaiter
from autowasm.controller.rollout.publisher import StagedPublisher
from autowasm.controller.startcheck import StartCheck, StartDecision, StartPending
from autowasm.controller.statusreporter import (
    UNMANAGED_REASONS,
    WRITE_REASONS,
    StatusReporter,
    failed_status,
    fetching_status,
    judging_status,
    replicating_status,
    synced_status,
    with_start,
)
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, SpecError, StorageError
from autowasm.kube import writes
from autowasm.kube.controller import Result
from autowasm.kube.leaderelection import AlwaysLeading, Leadership, NotLeading
from autowasm.kube.resources import ObjectKey
from autowasm.reasons import Reason
from autowasm.settings import EnvoyFetch

_log = structlog.get_logger(__name__)

GONE_RETRY = 1.0
"""Seconds until a module that was evicted right after its fetch is fetched again; a full disk may persist."""
NO_ROOM_RETRY = 30.0
"""Seconds before another try for a stored module that exceeds its namespace's quota."""
UNMANAGED_RETRY = 15.0
"""Seconds between two checks of a foreign or terminating EnvoyFilter that has our name."""

FETCHING_SHOWN_AFTER = 1.0
"""Seconds. After a shorter fetch or start, the status changes directly to `Synced`: a phase that is too short to see is not written."""


class StartupGate:
    """Calls `report` with the readiness of this replica, and with the reason."""

    def __init__(self, report: Callable[[bool, str], None] = lambda _ok, _why: None) -> None:
        self._pending: dict[ObjectKey, None] | None = None
        """In order: the report names the first ones."""
        self._report = report
        self._opened = asyncio.Event()

    def expect(self, keys: Iterable[ObjectKey]) -> None:
        """Everything was read: wait for these keys."""
        if self._opened.is_set():  # after the deadline, nothing makes the replica unready
            return
        self._pending = dict.fromkeys(sorted(keys))
        self._update()

    def is_pending(self, key: ObjectKey) -> bool:
        """Whether the gate waits for this key."""
        return self._pending is not None and key in self._pending

    def settled(self, key: ObjectKey) -> None:
        """The modules that the key has published are stored, or one fetch of each was tried."""
        if self._pending and key in self._pending:
            del self._pending[key]
            self._update()

    async def run(self, deadline: float) -> None:
        """Open after `deadline` seconds at the latest, then return."""
        try:
            async with asyncio.timeout(deadline):
                await self._opened.wait()
        except TimeoutError:
            self._pending = {}
            self._update(f"start-up deadline of {deadline:g} s passed")

    def _update(self, why: str = "") -> None:
        if self._pending:
            count = len(self._pending)
            subject = "1 AutoWasm is" if count == 1 else f"{count} AutoWasms are"
            examples = ", ".join(str(key) for key in islice(self._pending, 3))
            self._report(False, f"{subject} not reconciled yet ({examples})")
        elif not self._opened.is_set():
            self._opened.set()
            self._report(True, why)


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of this replica: fetched, copied from other replicas, stored, or published."""

    jobs: FetchJobs
    store: BlobStore
    published: PublishedModules
    admit: Callable[[str, str, Sha256Hex], None] = lambda _owner, _namespace, _sha256: None
    """`Retention.admit`: raises StorageError if the namespace's quota has no room."""
    prefetcher: Prefetcher | None = None
    """None: there are no other replicas."""
    replica_waiter: ReplicaWaiter | None = None


@dataclass(frozen=True, slots=True)
class Checks:
    """Checks that can block the publication of a stored module."""

    spec: Callable[[AutoWasm], None] = lambda _: None
    """The operator's settings and policy. Raises SpecError."""
    with_rollout: Callable[[AutoWasm], AutoWasm] = lambda autowasm: autowasm
    """The AutoWasm with the operator's default rollout."""
    pull_authorizer: PullAuthorizer | None = None
    start: StartCheck | None = None
    """Whether the module starts with its configuration. None: not checked."""
    service: Callable[[], AutoWasmError | None] = lambda: None
    """Why sidecars could not fetch a newly published module; None: they can."""


@dataclass(frozen=True, slots=True)
class Updates:
    """Causes of a new EnvoyFilter besides a change of the AutoWasm."""

    polls: PollResults = field(default_factory=NoPollResults)
    resend: Callable[[ObjectKey, Mapping[str, Any] | None, str], int] = lambda *_: 0
    """`Resender.wanted`."""


@dataclass(frozen=True, slots=True)
class _Publishable:
    """A module that may be published."""

    record: Record
    wanted: Mapping[str, Any]
    """The EnvoyFilter, if all Pods get it at once."""
    start: StartDecision


class AutoWasmReconciler:
    """One per process; the work queue calls `reconcile` for one key at a time."""

    def __init__(
        self,
        *,
        objects: AutoWasmLookup,
        publisher: Publisher,
        modules: Modules,
        reporter: StatusReporter,
        envoy: EnvoyFetch,
        checks: Checks | None = None,
        updates: Updates | None = None,
        staged: StagedPublisher | None = None,
        leadership: Leadership | None = None,
        startup_gate: StartupGate | None = None,
        now: Callable[[], str] = utc_now,
    ) -> None:
        """`staged` None: `spec.rollout` has no effect (standalone)."""
        self._objects = objects
        self._publisher = publisher
        self._jobs = modules.jobs
        self._store = modules.store
        self._published = modules.published
        self._admit = modules.admit
        self._prefetcher = modules.prefetcher
        self._replica_waiter = modules.replica_waiter
        self._reporter = reporter
        self._envoy = envoy
        self._checks = checks or Checks()
        self._updates = updates or Updates()
        self._staged = staged
        self._leadership = leadership or AlwaysLeading()
        self._startup_gate = startup_gate or StartupGate()
        self._now = now
        self._lost = GoneRecords()

    async def reconcile(self, key: ObjectKey) -> Result:
        """Bring the cluster to the desired state of this object. Raises the errors of writes; the queue then retries."""
        try:
            next_copy = self._prefetcher.ensure(key) if self._prefetcher is not None else None
            result = await self._lead_or_follow(key)
            return result.within(next_copy)
        finally:  # also after an error: a key that fails each time must not keep the replica unready
            if self._startup_gate.is_pending(key) and self.is_settled(key):
                self._startup_gate.settled(key)

    async def _lead_or_follow(self, key: ObjectKey) -> Result:
        try:
            if self._leadership.is_leading:
                async with self._leadership.scope():
                    await self._reporter.prepare()
                    return await self._lead(key)
        except NotLeading:
            pass  # the new leader reconciles every object
        return self._follow(key)

    def is_settled(self, key: ObjectKey) -> bool:
        """True if each module of the published EnvoyFilter is stored, or its fetch was tried once and is not running now (ADR 15)."""
        live = self._publisher.published(key)
        digests = envoyfilters.digests_of(live) if live is not None else ()
        stored = all(sha256 in self._store for sha256 in digests)
        copied = self._prefetcher is None or self._prefetcher.is_settled(key)
        return copied and (stored or not self._jobs.is_running(key))

    def _follow(self, key: ObjectKey) -> Result:
        """Fetch the modules that are or will be published."""
        self._let_go(key)
        found = self._objects.lookup(key)
        if found is None:
            self._publisher.forget(key)
            self._forget(key)
            return Result()
        context = self._context(key, found.document)
        self._reporter.observe(key, context.previous)
        try:
            autowasm = validation.parse(found.document)
        except SpecError:
            remember_origins(self._published, context, None)
            self._jobs.forget(key)
            return Result()
        remember_origins(self._published, context, autowasm)
        record = self._first_missing(context, autowasm)
        if record is None:
            self._jobs.forget(key)
            return Result()
        match self._jobs.ensure(key, fetch_request(autowasm, record=record)):
            case FetchFailed(retry_in=retry_in):
                return Result(requeue_after=retry_in)
            case FetchDone():  # there may be another record
                self._jobs.forget(key)
                return Result(requeue_after=0.0 if record.sha256 in self._store else GONE_RETRY)
            case _:
                return Result()

    def _first_missing(self, context: ReconcileContext, autowasm: AutoWasm) -> Record | None:
        """The published record comes first, because sidecars request it already."""
        live = context.live
        if live is not None and not belongs_to(live, str(autowasm.spec.filter.source)):
            live = None  # it may be forged
        for record in (live, context.replicated(autowasm)):
            if record is not None and record.sha256 not in self._store:
                return record
        return None

    async def _lead(self, key: ObjectKey) -> Result:
        found = self._objects.lookup(key)
        if found is None:
            await self._publisher.retract(key)
            self._forget(key)
            return Result()
        context = self._context(key, found.document)
        if writes.is_terminating(found.document):
            return self._terminating(context, found)
        try:
            context = await self._complete(context)
        except AutoWasmError as error:
            return await self._not_written(context, error)
        try:
            autowasm = self._checked(found)
        except SpecError as error:
            self._jobs.forget(key)
            self._let_go(key)
            remember_origins(self._published, context, None)
            return await self._failed(context, error)
        remember_origins(self._published, context, autowasm)
        return await self._reconcile_module(context, autowasm)

    def _terminating(self, context: ReconcileContext, found: Lookup) -> Result:
        """Write nothing for an object that is being deleted. The module stays known while an EnvoyFilter names it."""
        self._jobs.forget(context.key)
        self._let_go(context.key)
        try:
            remember_origins(self._published, context, self._checked(found))
        except SpecError:
            remember_origins(self._published, context, None)
        return Result()

    def _checked(self, found: Lookup) -> AutoWasm:
        """Raises SpecError."""
        if found.problem is not None:
            raise found.problem
        autowasm = self._checks.with_rollout(validation.parse(found.document))
        self._checks.spec(autowasm)
        if self._staged is None and autowasm.spec.rollout is not None:
            spec = msgspec.structs.replace(autowasm.spec, rollout=None)
            return msgspec.structs.replace(autowasm, spec=spec)
        return autowasm

    def _context(self, key: ObjectKey, document: Mapping[str, Any]) -> ReconcileContext:
        return ReconcileContext.of(key, document, live=self._publisher.published(key))

    async def _complete(self, context: ReconcileContext) -> ReconcileContext:
        """Read the EnvoyFilter from the API server before treating one that we published as absent."""
        published = context.previous.condition(ConditionType.PUBLISHED)
        if context.digests or published is None or published.status != "True":
            return context
        await self._publisher.find(context.key, context.document)
        return self._context(context.key, context.document)

    async def _reconcile_module(self, context: ReconcileContext, autowasm: AutoWasm) -> Result:
        """Get the module that the spec names, and publish it once it is stored."""
        ready = await self._get_ready(context, autowasm)
        rollout = autowasm.spec.rollout
        if self._staged is not None and rollout is not None:
            return await self._roll_out(self._staged, context, autowasm, rollout, ready)
        if self._staged is not None:
            self._staged.forget(context.key)
        return ready if isinstance(ready, Result) else await self._publish(context, autowasm, ready)

    async def _get_ready(
        self, context: ReconcileContext, autowasm: AutoWasm
    ) -> _Publishable | Result:
        """The module that the spec names, once nothing blocks its publication."""
        key = context.key
        decision = decide(
            autowasm,
            live=context.live,
            previous=context.previous,
            lost=self._lost.of(key),
            found=self._updates.polls.found(key, autowasm),
        )
        authorization = authorization_of(self._checks.pull_authorizer, context, autowasm, decision)
        if isinstance(authorization, AutoWasmError):
            if self._lost.give_up(context, decision, authorization):
                return Result(requeue_after=0.0)
            return await self._failed(context, authorization)
        if not authorization:
            return Result()  # the verdict queues the key
        if isinstance(decision, UseRecord) and decision.record.sha256 in self._store:
            return await self._check(context, autowasm, decision.record)
        if isinstance(decision, UseRecord):
            state = self._jobs.ensure(key, fetch_request(autowasm, record=decision.record))
        else:
            request = fetch_request(autowasm, known=context.live)
            state = self._jobs.ensure(key, request, resolve_key=decision.resolve_key)
        match state:
            case FetchDone(record) if record.sha256 in self._store:
                return await self._check(context, autowasm, record)
            case FetchDone():  # evicted or damaged meanwhile: fetch again
                self._jobs.forget(key)
                return Result(requeue_after=GONE_RETRY)
            case FetchRunning(seconds):
                return await self._fetching(context, autowasm, seconds)
            case FetchFailed(error, retry_in):
                if self._lost.give_up(context, decision, error):
                    return Result(requeue_after=0.0)
                error = explain_lost(decision, error)
                return await self._failed(context, error, retry_in=retry_in)

    async def _check(
        self, context: ReconcileContext, autowasm: AutoWasm, record: Record
    ) -> _Publishable | Result:
        """Whether the stored module may be published now."""
        try:
            self._admit(str(context.key), context.key.namespace, record.sha256)
        except StorageError as error:
            return await self._failed(context, error, retry_in=NO_ROOM_RETRY)
        remember_origins(self._published, context, autowasm, record)
        if (problem := self._checks.service()) is not None:
            return await self._failed(context, problem)  # a change of the Service queues all keys
        live = self._publisher.published(context.key)
        resend = self._updates.resend(context.key, live, record.sha256)
        wanted = envoyfilters.render(autowasm, record, self._envoy, resend=resend)
        start = StartDecision()
        if self._checks.start is not None:
            decision = self._checks.start.decide(
                context, autowasm, record.sha256, wanted=wanted, live=live
            )
            if isinstance(decision, StartPending):
                return await self._judging(context, autowasm, record, decision.seconds)
            start = decision
        if start.error is not None:
            return await self._failed(context, start.error, retry_in=start.retry_in, start=start)
        if not await self._is_replicated(context, record):
            return Result()  # the end of the wait queues the key
        return _Publishable(record, wanted, start)

    async def _publish(
        self, context: ReconcileContext, autowasm: AutoWasm, ready: _Publishable
    ) -> Result:
        record, wanted, start = ready.record, ready.wanted, ready.start
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
        refused = self._updates.polls.published(context.key, autowasm, record)
        if refused is None:
            status = synced_status(autowasm, record, previous=context.previous, now=self._now())
            if (
                self._staged is None
                and (context.document.get("spec") or {}).get("rollout") is not None
            ):
                message = f"{status.message}; spec.rollout has no effect in standalone mode"
                status = msgspec.structs.replace(status, message=message)
            await self._reporter.write(context, with_start(status, start, now=self._now()))
        else:  # the module in place stays, and the status has the error (ADR 7)
            after = self._context(context.key, context.document)
            await self._failed(after, refused, start=start)
        self._taken(context.key, autowasm, record)
        self._forget_replaced(context, autowasm, record)
        return Result()

    async def _roll_out(
        self,
        staged: StagedPublisher,
        context: ReconcileContext,
        autowasm: AutoWasm,
        rollout: Rollout,
        ready: _Publishable | Result,
    ) -> Result:
        """Publish in steps. While the module of an edited spec is not ready, the previous rollout is still watched."""
        record, start, result = None, StartDecision(), Result()
        if isinstance(ready, _Publishable):
            record, start = ready.record, ready.start
        else:
            result = ready
            found = self._objects.lookup(context.key)
            if found is None:
                return result
            context = self._context(context.key, found.document)
        try:
            staged_result = await staged.advance(
                context, autowasm, rollout, record=record, start=start
            )
        except AutoWasmError as error:
            found = self._objects.lookup(context.key)
            if found is not None:
                context = self._context(context.key, found.document)
            return await self._not_written(context, error)
        if staged_result.is_taken and record is not None:
            self._taken(context.key, autowasm, record)
        self._forget_replaced(context, autowasm, record)
        return result.within(staged_result.look_again)

    def _forget_replaced(
        self, context: ReconcileContext, autowasm: AutoWasm, record: Record | None
    ) -> None:
        """After a write: modules that it removed from the EnvoyFilter and the status are published no longer.

        Our own write queues no key, so no later reconcile does this. They count against the quota of the namespace until then.
        """
        replicated = context.replicated(autowasm)
        before = {*context.digests, *((replicated.sha256,) if replicated is not None else ())}
        if not before or (record is not None and before == {record.sha256}):
            return
        found = self._objects.lookup(context.key)
        if found is not None:
            after = self._context(context.key, found.document)
            more = (record,) if record is not None else ()
            remember_origins(self._published, after, autowasm, *more)

    def _taken(self, key: ObjectKey, autowasm: AutoWasm, record: Record) -> None:
        """The module is published, or its rollout is in the status."""
        self._jobs.forget(key)
        if self._checks.pull_authorizer is not None:
            self._checks.pull_authorizer.published(key, fetch_request(autowasm, record=record))
        if self._checks.start is not None:
            self._checks.start.published(key)
        self._lost.forget(key)
        if self._replica_waiter is not None:
            self._replica_waiter.forget(key)

    async def _is_replicated(self, context: ReconcileContext, record: Record) -> bool:
        """Whether the other replicas have the module or the wait for them is over (ADR 14)."""
        if self._replica_waiter is None or record.sha256 in context.digests:
            return True
        state = self._replica_waiter.state(context.key, record.sha256)
        if state is ReplicationState.ANNOUNCE:
            live, previous = context.in_place is not None, context.previous
            status = replicating_status(record, live=live, previous=previous, now=self._now())
            await self._reporter.write(context, status)
            self._replica_waiter.announced(context.key)
        return state is ReplicationState.DONE

    async def _judging(
        self, context: ReconcileContext, autowasm: AutoWasm, record: Record, seconds: float
    ) -> Result:
        """The module is being started in a child process; the end queues the key."""
        if seconds < FETCHING_SHOWN_AFTER:
            return Result(requeue_after=FETCHING_SHOWN_AFTER - seconds)
        if not _is_retry(context.previous, autowasm):
            live, previous = context.in_place is not None, context.previous
            status = judging_status(record, live=live, previous=previous, now=self._now())
            await self._reporter.write(context, status)
        return Result()

    async def _fetching(
        self, context: ReconcileContext, autowasm: AutoWasm, seconds: float
    ) -> Result:
        if seconds < FETCHING_SHOWN_AFTER:
            return Result(requeue_after=FETCHING_SHOWN_AFTER - seconds)
        previous = context.previous
        if not _is_retry(previous, autowasm) and previous.phase is not Phase.FETCHING:
            live = context.in_place is not None
            await self._reporter.write(
                context, fetching_status(autowasm, live=live, previous=previous, now=self._now())
            )
        return Result()

    async def _not_written(self, context: ReconcileContext, error: AutoWasmError) -> Result:
        """Record the failed write in the status; raise the errors that the queue retries."""
        if (
            error.reason == Reason.ENVOY_FILTER_REFUSED
        ):  # no event reports when the write would be accepted
            await self._failed(context, error)
            raise error
        if error.reason not in WRITE_REASONS:
            raise error
        # The informer only sees objects with our label: no event reports that a foreign EnvoyFilter is handed over or deleted.
        retry_in = UNMANAGED_RETRY if error.reason in UNMANAGED_REASONS else None
        return await self._failed(context, error, retry_in=retry_in)

    async def _failed(
        self,
        context: ReconcileContext,
        error: AutoWasmError,
        *,
        retry_in: float | None = None,
        start: StartDecision | None = None,
    ) -> Result:
        generation = context.document.get("metadata", {}).get("generation")
        status = failed_status(
            error,
            generation=generation if isinstance(generation, int) else 0,
            in_place=context.in_place,
            previous=context.previous,
            now=self._now(),
        )
        if start is not None:
            status = with_start(status, start, now=self._now())
        await self._reporter.write(context, status)
        return Result(requeue_after=retry_in)

    def _forget(self, key: ObjectKey) -> None:
        """The object was deleted."""
        self._jobs.forget(key)
        self._let_go(key)
        remember_orphan(self._published, key, self._publisher.left_behind(key))
        self._reporter.forget(key)

    def _let_go(self, key: ObjectKey) -> None:
        """Drop the state that only the leader keeps."""
        self._updates.polls.forget(key)
        self._lost.forget(key)
        if self._staged is not None:
            self._staged.forget(key)
        if self._checks.pull_authorizer is not None:
            self._checks.pull_authorizer.forget(key)
        if self._checks.start is not None:
            self._checks.start.forget(key)
        if self._replica_waiter is not None:
            self._replica_waiter.forget(key)


def _is_retry(previous: Status, autowasm: AutoWasm) -> bool:
    """Whether the status has an error of this generation, which is more useful than the phase of another attempt."""
    return (
        previous.phase in {Phase.FAILED, Phase.DEGRADED}
        and previous.observed_generation == autowasm.metadata.generation
    )
