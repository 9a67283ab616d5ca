"""StagedPublisher: writes the decisions of a staged rollout in order: the status first, then the EnvoyFilter (ADR 39).

`driver.py` provides the decisions. Invariants: the EnvoyFilter is never ahead of `status.rollout`, so a new leader finds at most an
EnvoyFilter that is behind, and writes it; an Event follows the status that it reports; `Synced` is written after the EnvoyFilter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from msgspec import UNSET

from autowasm.api.envoyfilter import variant_of
from autowasm.api.record import Record
from autowasm.api.status import ConditionType, RolloutPhase, RolloutStatus, Status
from autowasm.api.v1alpha1 import AutoWasm, Rollout
from autowasm.controller.interfaces import AutoWasmLookup, Publisher, RecordEvent, record_no_event
from autowasm.controller.polling import PollResults
from autowasm.controller.reconcilecontext import ReconcileContext
from autowasm.controller.rollout.driver import RolloutDriver
from autowasm.controller.rollout.statemachine import is_worth_writing
from autowasm.controller.startcheck import StartDecision
from autowasm.controller.statusreporter import (
    WRITE_REASONS,
    StatusReporter,
    failed_status,
    rollout_status,
    synced_status,
    with_start,
)
from autowasm.errors import AutoWasmError
from autowasm.kube.resources import ObjectKey
from autowasm.reasons import Reason

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StagedResult:
    """`look_again`: seconds until the next observation; None: an event queues the key. `is_taken`: the status has the spec's module."""

    look_again: float | None = None
    is_taken: bool = False


@dataclass(frozen=True, slots=True)
class _Writing:
    """The input of a status."""

    autowasm: AutoWasm
    state: RolloutStatus
    record: Record | None
    start: StartDecision
    refused: AutoWasmError | None
    """The permanent error of the source's newer version."""


class StagedPublisher:
    """One per process, cluster mode only: standalone mode has no Pods."""

    def __init__(
        self,
        driver: RolloutDriver,
        *,
        objects: AutoWasmLookup,
        publisher: Publisher,
        reporter: StatusReporter,
        polls: PollResults,
        resend: Callable[[ObjectKey, Any, str], int],
        now: Callable[[], str],
        record_event: RecordEvent = record_no_event,
    ) -> None:
        """`resend`: `Resender.wanted`. `now`: RFC 3339, for the conditions."""
        self._driver = driver
        self._objects = objects
        self._publisher = publisher
        self._reporter = reporter
        self._polls = polls
        self._resend = resend
        self._now = now
        self._record_event = record_event

    async def advance(
        self,
        context: ReconcileContext,
        autowasm: AutoWasm,
        rollout: Rollout,
        *,
        record: Record | None,
        start: StartDecision,
    ) -> StagedResult:
        """Observe once, and write the result.

        `record`: the module of the spec, ready to be published; None: it is not ready. Raises as `Publisher.publish`.
        """
        key, live = context.key, self._publisher.published(context.key)

        def resend(sha256: str) -> int:
            return self._resend(key, live, sha256)

        look = self._driver.look(
            key,
            autowasm,
            rollout=rollout,
            previous=context.previous,
            live=live,
            target=variant_of(autowasm, record) if record is not None else None,
            resend=resend,
        )
        if look.state is None:
            return StagedResult(look.look_again)
        is_taken = record is not None and _is_of(look.state, record)
        refused = self._polls.published(key, autowasm, record) if record and is_taken else None
        writing = _Writing(autowasm, look.state, record, start, refused)
        context = await self._write_state(context, writing, is_published=look.is_published)
        if look.document is None or not look.is_due:
            return StagedResult(look.look_again, is_taken)
        self._driver.placing(key)
        if await self._publisher.publish(key, context.document, look.document):
            _log.info(
                "envoyfilter published",
                key=str(key),
                rollout=look.state.phase.value,
                step=look.state.step,
                digest=look.state.target.digest,
            )
            await self._write_state(self._current(context), writing, is_published=True)
        return StagedResult(look.look_again, is_taken)

    async def _write_state(
        self, context: ReconcileContext, writing: "_Writing", *, is_published: bool
    ) -> ReconcileContext:
        """Write the state into the status unless only figures differ. Returns the object as it is after that."""
        previous, state = context.previous, writing.state
        stored = previous.rollout if previous.rollout is not UNSET else None
        status = self._status(context, writing, is_published=is_published)
        if not is_worth_writing(stored, state) and (
            _is_same(previous, status) or (not is_published and _is_of_write(previous))
        ):
            return context
        await self._reporter.write(context, status)
        for event in self._driver.written(context.key, state):
            self._record_event(context.document, event.kind, event.name, event.message)
        return self._current(context)

    def _status(
        self, context: ReconcileContext, writing: "_Writing", *, is_published: bool
    ) -> Status:
        previous, state, now = context.previous, writing.state, self._now()
        record, has_ended = writing.record, writing.state.phase is RolloutPhase.SUCCEEDED
        if record is None or not _is_of(state, record) or (has_ended and not is_published):
            # The rest of the status is about the module that the spec names now, or about the EnvoyFilter in place.
            return msgspec.structs.replace(previous, rollout=state)
        autowasm = writing.autowasm
        if not has_ended:
            status = rollout_status(
                autowasm,
                state,
                is_in_place=bool(context.digests),
                previous=previous,
                now=now,
            )
        elif writing.refused is not None:  # the module in place stays (ADR 7)
            status = failed_status(
                writing.refused,
                generation=autowasm.metadata.generation,
                in_place=context.in_place,
                previous=msgspec.structs.replace(previous, rollout=state),
                now=now,
            )
        else:
            status = synced_status(autowasm, record, previous=previous, now=now, rollout=state)
        return with_start(status, writing.start, now=now)

    def _current(self, context: ReconcileContext) -> ReconcileContext:
        found = self._objects.lookup(context.key)
        if found is None:
            return context
        live = self._publisher.published(context.key)
        return ReconcileContext.of(context.key, found.document, live=live)

    def forget(self, key: ObjectKey) -> None:
        """The object is gone, has no rollout, or another replica leads now."""
        self._driver.forget(key)


def _is_of(state: RolloutStatus, record: Record) -> bool:
    """Whether the state is about this module."""
    module = state.target.module
    return module is not UNSET and module.record() == record


def _is_of_write(previous: Status) -> bool:
    """Whether the status has the error of the last write, which the next write may also raise."""
    ready = previous.condition(ConditionType.READY)
    return ready is not None and ready.reason in {*WRITE_REASONS, Reason.ENVOY_FILTER_REFUSED}


def _is_same(previous: Status, status: Status) -> bool:
    """Whether no difference is urgent for the user or a new leader: messages and figures of a rollout are written at intervals."""

    def lasting(one: Status) -> Any:
        conditions = [
            (each.type, each.status, each.reason, each.observed_generation)
            for each in one.conditions
        ]
        return msgspec.structs.replace(one, message="", rollout=UNSET, conditions=()), conditions

    return bool(lasting(previous) == lasting(status))
