"""An AutoWasm for every reason that `Ready` may have, as the reconciler and its StatusReporter leave it in the cluster."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from autowasm.api import status as statuses
from autowasm.api.status import (
    Condition,
    ConditionType,
    Preflight,
    RolloutPhase,
    RolloutStatus,
    RolloutVariant,
)
from autowasm.api.validation import parse
from autowasm.controller.reconciler import Checks
from autowasm.controller.startcheck import StartCheck, StartDecision
from autowasm.controller.statusreporter import rollout_status
from autowasm.errors import AutoWasmError, SpecError, StorageError
from autowasm.kube.resources import ObjectKey
from autowasm.reasons import Progress, Reason, Topic
from tests.fakes.autowasms import document
from tests.unit.controller.reconciling.cluster import (
    KEY,
    OTHER,
    Process,
    ReconciledCluster,
    running,
)

OF_READY: Final = [one for one in Reason if one.progress is not Progress.ELSEWHERE]

Document = dict[str, Any]


class _Refusing:
    """A StartCheck that lets nothing be published once it has an error."""

    error: AutoWasmError | None = None

    def check(self, _autowasm: object) -> None:
        pass

    def decide(self, *_: object, **__: object) -> StartDecision:
        if self.error is None:
            return StartDecision()
        reason, message = self.error.reason, str(self.error)
        condition = Condition(ConditionType.STARTS.value, "False", reason, message)
        return StartDecision(condition, Preflight("ab", "False", reason, message), self.error)

    def published(self, _key: ObjectKey) -> None:
        pass

    def forget(self, _key: ObjectKey) -> None:
        pass


class _Recording(Process):
    """A process whose modules are refused at the start, or have no room, as a test says."""

    no_room: StorageError | None = None

    def module_collaborators(self) -> dict[str, Any]:
        return {"admit": self._admit}

    def _admit(self, *_: object) -> None:
        if self.no_room is not None:
            raise self.no_room

    def checks(self) -> Checks:
        self.refusing = _Refusing()
        return replace(super().checks(), start=cast(StartCheck, self.refusing))


async def recorded(directory: Path, reason: Reason, *, in_place: bool) -> Document:
    """The object once `Ready` has this reason. `in_place`: a module was published before.

    For `Fetching`, the caller sets `reconciler.FETCHING_SHOWN_AFTER` to 0.
    """
    cluster = ReconciledCluster(directory)
    # Retries would only repeat it.
    async with running(_Recording, cluster, directory, retry_base=600) as process:
        if in_place:
            await process.apply()
        if reason in _ROLLOUTS:
            return await _in_rollout(process, reason, in_place=in_place)
        _cause(process, reason)
        cluster.objects.apply(document(image=OTHER))
        await _until(process, reason)
        return cluster.objects.documents[KEY]


_ROLLOUTS: Final = {
    Reason.ROLLING_OUT: RolloutPhase.PROGRESSING,
    Reason.ROLLOUT_PAUSED: RolloutPhase.PAUSED,
    Reason.ROLLOUT_FAILED: RolloutPhase.ABORTED,
}


async def _in_rollout(process: Process, reason: Reason, *, in_place: bool) -> Document:
    """With the status that the reporter makes of a staged rollout in this phase (test_rollout.py has rollouts themselves)."""
    process.cluster.objects.apply(document(image=OTHER))
    found = process.cluster.objects.documents[KEY]
    rollout = RolloutStatus(
        phase=_ROLLOUTS[reason],
        target=RolloutVariant("0" * 16, found["metadata"]["generation"]),
        message=f"a message about {reason.value}",
    )
    status = rollout_status(
        parse(found),
        rollout,
        is_in_place=in_place,
        previous=statuses.read(process.cluster.status),
        now=statuses.utc_now(),
    )
    await process.cluster.publisher.write_status(KEY, found, status.to_dict())
    return process.cluster.objects.documents[KEY]


async def _until(process: Process, reason: Reason) -> None:
    process.queue.add(KEY)
    async with asyncio.timeout(10):
        while True:
            status = statuses.read(process.cluster.status)
            ready = status.condition(ConditionType.READY)
            is_new = reason is not Reason.SYNCED or OTHER in str(status.module)
            if ready is not None and ready.reason == reason and is_new:
                return
            await asyncio.sleep(0.001)


def _cause(process: _Recording, reason: Reason) -> None:
    """Make the next reconcile end with `reason`: at the step of the flow that has such errors."""
    cluster, message = process.cluster, f"a message about {reason.value}"
    error = AutoWasmError(message, reason=reason)
    if reason is Reason.SYNCED:
        return
    if reason is Reason.FETCHING:
        cluster.registry.gates["resolve"] = asyncio.Event()
    elif reason is Reason.NAMESPACE_SHARE_EXCEEDED:
        process.no_room = StorageError(message, reason=reason)
    elif reason in {Reason.SERVICE_NOT_FOUND, Reason.SERVICE_PORT_MISSING}:
        cluster.service_problem = error
    elif reason.topic is Topic.ENVOYFILTER:
        cluster.publisher.refusal = error
    elif reason.topic is Topic.START:
        process.refusing.error = error
    elif reason.topic is Topic.OBJECT:
        cluster.objects.problems[KEY] = SpecError("spec.filter", message, reason=reason)
    else:
        cluster.registry.failures["resolve"] = error
