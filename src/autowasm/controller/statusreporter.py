"""StatusReporter: writes a changed status and reports it in the log, Events and metrics; also pure functions that build a status.

Invariants: `Synced` is written only after the EnvoyFilter is in place; `Degraded` only while one is; a timestamp changes only
together with the fact that it dates; an unchanged status is neither written nor reported again; unless `Ready` is True, the
status has `Reconciling` or `Stalled`, which is added and removed in the same write as `observedGeneration` (kstatus).
"""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Protocol

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from autowasm.api.record import Record
from autowasm.api.status import (
    MAX_MESSAGE,
    Condition,
    ConditionType,
    Module,
    Phase,
    Pods,
    RolloutPhase,
    RolloutStatus,
    Status,
    remember,
    with_condition,
    with_conditions,
)
from autowasm.api.v1alpha1 import REFRESH_ANNOTATION, AutoWasm
from autowasm.controller.interfaces import Publisher, RecordEvent, record_no_event
from autowasm.controller.pods.podstatuswriter import PodReport, with_conditions_of
from autowasm.controller.reconcilecontext import ReconcileContext
from autowasm.controller.startcheck import StartDecision
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError
from autowasm.kube.resources import ObjectKey
from autowasm.reasons import Progress, Reason, Topic
from autowasm.telemetry.metrics import Metrics
from autowasm.units import format_size

_SPEC_REASONS = {
    Reason.INVALID_SPEC,
    Reason.DUPLICATE_OBJECT,
    Reason.FILE_INVALID,
    Reason.MESH_WIDE_NOT_ALLOWED,
}
UNMANAGED_REASONS = {Reason.ENVOY_FILTER_CONFLICT, Reason.ENVOY_FILTER_TERMINATING}
"""The name belongs to a foreign EnvoyFilter, or to one that is being deleted."""
WRITE_REASONS = {*UNMANAGED_REASONS, Reason.MUTATED}
"""The module is stored, but the EnvoyFilter could not be written."""
SERVICE_REASONS = {Reason.SERVICE_NOT_FOUND, Reason.SERVICE_PORT_MISSING}
"""The module is stored, but sidecars could not fetch it. The module in place stays."""
START_REASONS = {one for one in Reason if one.topic is Topic.START}
"""The module is stored, but does not start with its configuration, or may not. The module in place stays."""
_STALLED = {one for one in Reason if one.progress is Progress.STALLED}
_FETCHED = ("True", Reason.FETCHED, "the module is fetched, checked and stored")


def synced_status(
    autowasm: AutoWasm,
    record: Record,
    *,
    previous: Status,
    now: str,
    rollout: RolloutStatus | UnsetType = UNSET,
) -> Status:
    """The module is fetched, checked, stored and published. `rollout`: the staged rollout that has ended."""
    module = _module(record, previous, now)
    message = (
        f"module sha256:{record.sha256[:12]} ({format_size(record.size)}, ABI {record.abi}) "
        f"from {record.origin} is published"
    )
    return Status(
        phase=Phase.SYNCED,
        message=_cut(message),
        observed_generation=autowasm.metadata.generation,
        module=module,
        history=remember(previous.history, module),
        refresh=autowasm.metadata.annotations.get(REFRESH_ANNOTATION, ""),
        pods=previous.pods,
        preflight=previous.preflight,
        rollout=rollout,
        conditions=_conditions(
            previous,
            autowasm.metadata.generation,
            now,
            fetched=_FETCHED,
            published=("True", Reason.PUBLISHED, "the EnvoyFilter is in place"),
            ready=("True", Reason.SYNCED, message),
        ),
    )


def fetching_status(autowasm: AutoWasm, *, live: bool, previous: Status, now: str) -> Status:
    """A fetch has been running for more than a moment."""
    message = f"fetching {_source_text(autowasm)}"
    if live:
        message += "; the previous module stays in place"
    return Status(
        phase=Phase.FETCHING,
        message=_cut(message),
        observed_generation=previous.observed_generation,
        module=previous.module,
        history=previous.history,
        refresh=previous.refresh,
        pods=previous.pods,
        preflight=previous.preflight,
        rollout=previous.rollout,
        conditions=_conditions(
            previous,
            previous.observed_generation,
            now,
            fetched=("Unknown", Reason.FETCHING, message),
            published=_published(live),
            ready=("False", Reason.FETCHING, message),
        ),
    )


def replicating_status(record: Record, *, live: bool, previous: Status, now: str) -> Status:
    """The module is stored here; the other replicas receive its record before any Envoy does (ADR 14)."""
    message = (
        f"module sha256:{record.sha256[:12]} is stored; waiting for the other replicas to copy it"
    )
    return _stored_status(record, message, live=live, previous=previous, now=now)


def _stored_status(
    record: Record, message: str, *, live: bool, previous: Status, now: str
) -> Status:
    """The module is stored, but another step precedes its publication."""
    generation = previous.observed_generation
    return Status(
        phase=Phase.FETCHING,
        message=message,
        observed_generation=generation,
        module=_module(record, previous, now),
        history=previous.history,
        refresh=previous.refresh,
        pods=previous.pods,
        preflight=previous.preflight,
        rollout=previous.rollout,
        conditions=_conditions(
            previous,
            generation,
            now,
            fetched=_FETCHED,
            published=_published(live),
            ready=("False", Reason.FETCHING, message),
        ),
    )


def failed_status(
    error: AutoWasmError,
    *,
    generation: int,
    in_place: Sha256Hex | None,
    previous: Status,
    now: str,
) -> Status:
    """The last attempt failed: `Degraded` while a module is in place, else `Failed`."""
    message = str(error)
    if in_place is not None:
        message += f"; the previous module (sha256:{in_place[:12]}) is still in place"
    fetched = ("Unknown" if error.reason in _SPEC_REASONS else "False", error.reason, str(error))
    published = _published(in_place is not None)
    if error.reason in WRITE_REASONS:
        fetched, published = _FETCHED, ("False", error.reason, str(error))
    if error.reason in START_REASONS:
        fetched = _FETCHED
    if error.reason in SERVICE_REASONS or error.reason == Reason.ENVOY_FILTER_REFUSED:
        fetched = _FETCHED
        published = published if in_place is not None else ("False", error.reason, str(error))
    return Status(
        phase=Phase.DEGRADED if in_place is not None else Phase.FAILED,
        message=_cut(message),
        observed_generation=generation,
        module=previous.module,
        history=previous.history,
        refresh=previous.refresh,
        pods=previous.pods,
        preflight=previous.preflight,
        rollout=previous.rollout,
        conditions=_conditions(
            previous,
            generation,
            now,
            fetched=fetched,
            published=published,
            ready=("False", error.reason, message),
        ),
    )


def rollout_status(
    autowasm: AutoWasm,
    rollout: RolloutStatus,
    *,
    is_in_place: bool,
    previous: Status,
    now: str,
) -> Status:
    """A staged rollout is in progress, or was aborted. `is_in_place`: whether the EnvoyFilter in place names a module."""
    reason = Reason.ROLLING_OUT
    if rollout.phase is RolloutPhase.PAUSED:
        reason = Reason.ROLLOUT_PAUSED
    elif rollout.phase is RolloutPhase.ABORTED:
        reason = Reason.ROLLOUT_FAILED
    is_aborted = rollout.phase is RolloutPhase.ABORTED
    newest = rollout.stable if is_aborted else rollout.target
    module = newest.module if newest is not UNSET else UNSET
    generation, message = rollout.target.generation, f"rollout: {rollout.message}"
    return Status(
        phase=Phase.DEGRADED if is_aborted else Phase.PROGRESSING,
        message=_cut(message),
        observed_generation=generation,
        module=_module(module.record(), previous, now) if module is not UNSET else UNSET,
        history=previous.history,
        refresh=autowasm.metadata.annotations.get(REFRESH_ANNOTATION, ""),
        pods=previous.pods,
        preflight=previous.preflight,
        rollout=rollout,
        conditions=_conditions(
            previous,
            generation,
            now,
            fetched=_FETCHED,
            published=_published(is_in_place),
            ready=("False", reason, message),
        ),
    )


def judging_status(record: Record, *, live: bool, previous: Status, now: str) -> Status:
    """The module is stored; wasmer starts it with its configuration before any Envoy does (ADR 37)."""
    message = f"module sha256:{record.sha256[:12]} is stored; wasmer starts it with its configuration before it is published"
    return _stored_status(record, message, live=live, previous=previous, now=now)


def with_start(status: Status, decision: StartDecision, *, now: str) -> Status:
    """The status with the result of the module's start."""
    condition = decision.condition
    if condition is not None:
        condition = msgspec.structs.replace(condition, message=_cut(condition.message))
    conditions = with_condition(status.conditions, ConditionType.STARTS, condition, now=now)
    return msgspec.structs.replace(status, conditions=conditions, preflight=decision.preflight)


def _module(record: Record, previous: Status, now: str) -> Module:
    """The module entry, with the time at which this record was first seen."""
    known = [previous.module] if previous.module is not UNSET else []
    for entry in (*known, *previous.history):
        if entry.record() == record:
            return entry
    return Module.of(record, now)


def _published(live: bool) -> tuple[str, str, str]:
    if live:
        return ("True", Reason.PUBLISHED, "the EnvoyFilter is in place")
    return ("False", Reason.NOT_PUBLISHED, "no EnvoyFilter has been written yet")


def _conditions(
    previous: Status,
    generation: int,
    now: str,
    *,
    fetched: tuple[str, str, str],
    published: tuple[str, str, str],
    ready: tuple[str, str, str],
) -> tuple[Condition, ...]:
    wanted = []
    for kind, (status, reason, message) in (
        (ConditionType.FETCHED, fetched),
        (ConditionType.PUBLISHED, published),
        (ConditionType.READY, ready),
        *_progress(*ready),
    ):
        wanted.append(
            Condition(
                type=kind.value,
                status=status,
                reason=reason,
                message=_cut(message),
                observed_generation=generation,
            )
        )
    conditions = with_conditions(previous, tuple(wanted), now=now)
    # Starts is set by `with_start`, the others by PodStatusWriter (`pods/podstatuswriter.py`).
    kinds = (ConditionType.STARTS, ConditionType.LOADED, ConditionType.RUNNING)
    kept = (previous.condition(kind) for kind in kinds)
    return (*conditions, *(condition for condition in kept if condition is not None))


def _progress(
    status: str, reason: str, message: str
) -> Iterator[tuple[ConditionType, tuple[str, str, str]]]:
    """The condition by which kstatus (Helm, Flux) distinguishes waiting from failure; none if `Ready` is True."""
    if status != "True":
        kind = ConditionType.STALLED if reason in _STALLED else ConditionType.RECONCILING
        yield kind, ("True", reason, message)


def _source_text(autowasm: AutoWasm) -> str:
    source = autowasm.spec.filter.source
    if source.registry is not None:
        return source.registry.image
    return source.object.url.partition("?")[0] if source.object else ""


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


_log = structlog.get_logger(__name__)


class PodReports(Protocol):
    """The Pods that an AutoWasm's selector matches."""

    async def prepare(self) -> None:
        """Return when Pods are listed, or after a deadline without them."""

    async def report(self, key: ObjectKey, /) -> PodReport | None:
        """The value of `status.pods` and the Pod conditions; None: unknown now."""


class StatusReporter:
    """One per process. `pods` None: there are no Pods (standalone)."""

    def __init__(
        self,
        publisher: Publisher,
        *,
        metrics: Metrics,
        pods: PodReports | None = None,
        record_event: RecordEvent = record_no_event,
    ) -> None:
        self._publisher = publisher
        self._metrics = metrics
        self._pods = pods
        self._record_event = record_event
        self._phases: dict[ObjectKey, Phase] = {}
        self._counts: Counter[Phase] = Counter()
        for phase in Phase:  # set now, because an absent series is not zero for an alert
            metrics.autowasms.labels(phase.value).set(0)

    async def prepare(self) -> None:
        """Return when a new leader knows enough for a complete first status, or after a deadline."""
        if self._pods is not None:
            await self._pods.prepare()

    async def write(self, context: ReconcileContext, status: Status) -> None:
        """Write the status if it has changed. Raises the errors of the write."""
        previous = context.previous
        if status != previous:
            report = await self._pods.report(context.key) if self._pods is not None else None
            if report is None and _names_another_module(status, previous):
                report = _only_counts(status)
            if report is not None:
                conditions = with_conditions_of(report, status.conditions)
                status = msgspec.structs.replace(status, pods=report.pods, conditions=conditions)
            await self._publisher.write_status(context.key, context.document, status.to_dict())
            if status.phase is not previous.phase or status.message != previous.message:
                _log.info(
                    "phase",
                    key=str(context.key),
                    phase=status.phase.value,
                    message=status.message,
                )
                self._record_change(context, status)
        self.observe(context.key, status)

    def observe(self, key: ObjectKey, status: Status) -> None:
        """Count the object by its phase, and name it in the metrics if it is not Synced."""
        phase, objects, place = status.phase, self._metrics.objects, (key.namespace, key.name)
        if phase is Phase.SYNCED:
            objects.synced(place)
        else:
            ready = status.condition(ConditionType.READY)
            objects.unsynced(place, phase=phase.value, reason=ready.reason if ready else "")
        objects.resolved(place, _resolved_at(status))
        before = self._phases.get(key)
        if before is not phase:
            self._phases[key] = phase
            self._count(phase, 1)
            if before is not None:
                self._count(before, -1)

    def forget(self, key: ObjectKey) -> None:
        """The object was deleted."""
        self._metrics.objects.forget((key.namespace, key.name))
        before = self._phases.pop(key, None)
        if before is not None:
            self._count(before, -1)

    def _record_change(self, context: ReconcileContext, status: Status) -> None:
        """Record a new module or a failure as an Event."""
        ready = status.condition(ConditionType.READY)
        if ready is not None and ready.reason == Reason.ROLLOUT_FAILED:
            return  # the rollout has its own Events
        if status.phase in {Phase.DEGRADED, Phase.FAILED}:
            self._record_event(context.document, "Warning", status.phase.value, status.message)
        elif status.phase is Phase.SYNCED and status.module is not UNSET:
            before = f"sha256:{context.in_place[:12]}" if context.in_place else "nothing"
            after = f"sha256:{status.module.sha256[:12]}"
            if before != after:
                message = f"{before} → {after} ({status.module.origin})"
                self._record_event(context.document, "Normal", "Synced", message)

    def _count(self, phase: Phase, change: int) -> None:
        self._counts[phase] += change
        self._metrics.autowasms.labels(phase.value).set(self._counts[phase])


def _names_another_module(status: Status, previous: Status) -> bool:
    now = status.module.sha256 if status.module is not UNSET else ""
    return now != (previous.module.sha256 if previous.module is not UNSET else "")


def _only_counts(status: Status) -> PodReport | None:
    """The Pod counts without the facts about the module, which were about the previous module."""
    if status.pods is UNSET:
        return None
    return PodReport(Pods(matched=status.pods.matched, injected=status.pods.injected))


def _resolved_at(status: Status) -> float | None:
    """When the module in use was fetched, seconds since the epoch; None if the source names a digest, or there is no module."""
    module = status.module
    if module is UNSET or "@sha256:" in module.source:
        return None
    try:
        return datetime.fromisoformat(module.fetched_at).timestamp()
    except ValueError:  # any client may have written it
        return None
