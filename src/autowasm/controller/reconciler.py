"""AutoWasmReconciler: from what an AutoWasm says to the EnvoyFilter that makes it so. Level-based, idempotent.

Reads like the flow in docs/architecture.md. It does not fetch (`jobs.py` does, off this path), does not know whether it
runs on Kubernetes or over a directory, and writes nothing when nothing changed. Invariants: an EnvoyFilter is published
only while its module is in the store, checked (design D5); a failure never touches one that works (D6).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from msgspec import UNSET

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import parsing
from autowasm.api import status as statuses_api
from autowasm.api.record import Record, belongs_to
from autowasm.api.status import Phase, Pods, Status
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.published import Origin, PublishedModules
from autowasm.artifacts.source import FetchRequest
from autowasm.blobs.store import BlobStore
from autowasm.controller import statuses
from autowasm.controller.decision import PUBLISHED_MODULE_LOST, Resolve, Use, decide
from autowasm.controller.interfaces import Announce, AutoWasmLookup, Publisher, announce_nothing
from autowasm.controller.jobs import Done, FetchFailed, FetchJobs, Running
from autowasm.controller.permits import Permits
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, SpecError, StorageError
from autowasm.kube.controller import Result
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Subject:
    """One object as this reconcile sees it: read once, at the start."""

    key: ObjectKey
    document: Mapping[str, Any]
    live: Record | None
    """The record of the EnvoyFilter in place."""
    previous: Status


NO_ROOM_RETRY = 30.0
"""Seconds until a module that is here, but is more than its namespace may publish, is looked at again."""

FETCHING_SHOWN_AFTER = 1.0
"""Seconds. A shorter fetch goes straight to `Synced`: no writes for phases that nobody can see."""


def utc_now() -> str:
    """RFC 3339, whole seconds, as metav1.Time prints it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
        permits: Permits | None = None,
        admit: Callable[[str, str, Sha256Hex], None] = lambda _owner, _namespace, _sha256: None,
        pods: Callable[[ObjectKey], Pods] | None = None,
        announce: Announce = announce_nothing,
        now: Callable[[], str] = utc_now,
    ) -> None:
        self._objects = objects
        self._publisher = publisher
        self._jobs = jobs
        self._store = store
        self._published = published
        self._envoy = envoy
        self._metrics = metrics
        self._check = check
        self._permits = permits
        self._admit = admit
        self._pods = pods
        self._announce = announce
        self._now = now
        self._phases: dict[ObjectKey, Phase] = {}

    async def reconcile(self, key: ObjectKey) -> Result:
        """Make the world match the object of this name. Raises what the writes raise; the queue then retries."""
        found = self._objects.lookup(key)
        if found is None:
            return await self._gone(key)
        subject = _Subject(
            key,
            found.document,
            self._live_record(key),
            statuses_api.read(found.document.get("status")),
        )
        try:
            if found.problem is not None:
                raise found.problem
            autowasm = parsing.parse(found.document)
            self._check(autowasm)
        except SpecError as error:
            self._jobs.forget(key)
            self._remember_origins(subject, None)
            return await self._failed(subject, error)
        self._remember_origins(subject, autowasm)
        if autowasm.metadata.deletion_timestamp is not None:
            self._jobs.forget(key)
            return Result()
        return await self._pursue(subject, autowasm)

    def settled(self, key: ObjectKey) -> bool:
        """True unless the module of a published EnvoyFilter is being fetched for the first time (design D15)."""
        live = self._live_record(key)
        return live is None or live.sha256 in self._store or not self._jobs.is_running(key)

    async def _pursue(self, subject: _Subject, autowasm: AutoWasm) -> Result:
        """Get the module that the spec asks for, and publish it once it is here."""
        key = subject.key
        decision = decide(autowasm, live=subject.live, previous=subject.previous)
        permit = self._permit(subject, autowasm, decision)
        if isinstance(permit, AutoWasmError):
            return await self._failed(subject, permit)
        if not permit:
            return Result()  # we are told when it is known
        if isinstance(decision, Use) and decision.record.sha256 in self._store:
            return await self._publish(subject, autowasm, decision.record)
        if isinstance(decision, Use):
            state = self._jobs.ensure(key, _request(autowasm, record=decision.record))
        else:
            request = _request(autowasm, known=subject.live)
            state = self._jobs.ensure(key, request, wish=decision.wish)
        match state:
            case Done(record) if record.sha256 in self._store:
                return await self._publish(subject, autowasm, record)
            case Done():  # evicted or damaged since: begin again
                self._jobs.forget(key)
                return Result(requeue_after=0.0)
            case Running(seconds):
                return await self._fetching(subject, autowasm, seconds)
            case FetchFailed(error, retry_in):
                if isinstance(decision, Use) and subject.live == decision.record:
                    error = _lost(error)
                return await self._failed(subject, error, retry_in=retry_in)

    def _permit(
        self, subject: _Subject, autowasm: AutoWasm, decision: Use | Resolve
    ) -> AutoWasmError | bool:
        """Whether its own Secret allows the record (design D11); resolving afresh asks the registry itself."""
        if self._permits is None or not isinstance(decision, Use):
            return True
        record = decision.record
        request = _request(autowasm, record=record)
        return self._permits.verdict(subject.key, request, published=record == subject.live)

    async def _publish(self, subject: _Subject, autowasm: AutoWasm, record: Record) -> Result:
        try:
            self._admit(str(subject.key), subject.key.namespace, record.sha256)
        except StorageError as error:
            return await self._failed(subject, error, retry_in=NO_ROOM_RETRY)
        self._remember_origins(subject, autowasm, record)
        wanted = envoyfilters.render(autowasm, record, self._envoy)
        try:
            changed = await self._publisher.publish(subject.key, subject.document, wanted)
        except AutoWasmError as error:
            if error.reason not in statuses.WRITE_REASONS:
                raise
            return await self._failed(subject, error)
        if changed:
            _log.info(
                "envoyfilter published",
                key=str(subject.key),
                digest=record.sha256,
                previous_digest=subject.live.sha256 if subject.live else None,
            )
        await self._write_status(
            subject,
            statuses.synced(autowasm, record, previous=subject.previous, now=self._now()),
        )
        self._jobs.forget(subject.key)
        return Result()

    async def _fetching(self, subject: _Subject, autowasm: AutoWasm, seconds: float) -> Result:
        if seconds < FETCHING_SHOWN_AFTER:
            return Result(requeue_after=FETCHING_SHOWN_AFTER - seconds)
        previous = subject.previous
        retry = (
            previous.phase in {Phase.FAILED, Phase.DEGRADED}
            and previous.observed_generation == autowasm.metadata.generation
        )  # says what is wrong: worth more than that it is tried again
        if not retry and previous.phase is not Phase.FETCHING:
            live = subject.live is not None
            await self._write_status(
                subject, statuses.fetching(autowasm, live=live, previous=previous, now=self._now())
            )
        return Result()

    async def _failed(
        self, subject: _Subject, error: AutoWasmError, *, retry_in: float | None = None
    ) -> Result:
        generation = subject.document.get("metadata", {}).get("generation")
        status = statuses.failed(
            error,
            generation=generation if isinstance(generation, int) else 0,
            live=subject.live,
            previous=subject.previous,
            now=self._now(),
        )
        await self._write_status(subject, status)
        return Result(requeue_after=retry_in)

    async def _gone(self, key: ObjectKey) -> Result:
        self._jobs.forget(key)
        if self._permits is not None:
            self._permits.forget(key)
        await self._publisher.retract(key)
        self._published.remove(str(key))
        if self._phases.pop(key, None) is not None:
            self._count_phases()
        return Result()

    def _live_record(self, key: ObjectKey) -> Record | None:
        live = self._publisher.published(key)
        return envoyfilters.record_of(dict(live)) if live is not None else None

    def _remember_origins(
        self, subject: _Subject, autowasm: AutoWasm | None, *more: Record
    ) -> None:
        """What Envoys may ask us for on behalf of this object, and where it can be had again.

        A record that is not the spec's own makes its digest known and names no origin: it may be forged.
        """
        source = autowasm.spec.filter.source if autowasm else None
        secret = autowasm.spec.secret if autowasm else None
        records = dict.fromkeys(record for record in (*more, subject.live) if record is not None)
        self._published.set(
            str(subject.key),
            tuple(
                Origin(
                    subject.key.namespace,
                    source if source and belongs_to(record, str(source)) else None,
                    secret,
                    record,
                )
                for record in records
            ),
            history=[entry.sha256 for entry in subject.previous.history],
        )

    async def _write_status(self, subject: _Subject, status: Status) -> None:
        previous = subject.previous
        if status != previous:
            if self._pods is not None:
                status = msgspec.structs.replace(status, pods=self._pods(subject.key))
            await self._publisher.write_status(subject.key, subject.document, status.to_dict())
            if status.phase is not previous.phase or status.message != previous.message:
                _log.info(
                    "phase",
                    key=str(subject.key),
                    phase=status.phase.value,
                    message=status.message,
                )
                self._tell(subject, status)
        if self._phases.get(subject.key) is not status.phase:
            self._phases[subject.key] = status.phase
            self._count_phases()

    def _tell(self, subject: _Subject, status: Status) -> None:
        """An Event for what people want to hear of: a new module, and trouble."""
        if status.phase in {Phase.DEGRADED, Phase.FAILED}:
            self._announce(subject.document, "Warning", status.phase.value, status.message)
        elif status.phase is Phase.SYNCED and status.module is not UNSET:
            before = f"sha256:{subject.live.sha256[:12]}" if subject.live else "nothing"
            after = f"sha256:{status.module.sha256[:12]}"
            if before != after:
                message = f"{before} → {after} ({status.module.origin})"
                self._announce(subject.document, "Normal", "Synced", message)

    def _count_phases(self) -> None:
        counts = Counter(self._phases.values())
        for phase in Phase:
            self._metrics.autowasms.labels(phase.value).set(counts[phase])


def _request(
    autowasm: AutoWasm, *, record: Record | None = None, known: Record | None = None
) -> FetchRequest:
    return FetchRequest(
        namespace=autowasm.metadata.namespace,
        owner=f"{autowasm.metadata.namespace}/{autowasm.metadata.name}",
        source=autowasm.spec.filter.source,
        secret=autowasm.spec.secret,
        expected=autowasm.spec.filter.sha256,
        record=record,
        known=known,
    )


def _lost(error: AutoWasmError) -> AutoWasmError:
    """Design D7: what is published can be had from nowhere. Nothing is changed by itself."""
    return AutoWasmError(
        f"the published module is not stored here and cannot be fetched again: {error}; proxies that "
        "have it keep running it; set the annotation wasm.tcm.io/refresh to a new value to "
        "resolve the source afresh",
        reason=PUBLISHED_MODULE_LOST,
    )
