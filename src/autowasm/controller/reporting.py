"""StatusReporter: writes a status that differs, and says in log, Events and metrics what people want to hear of.

Not the decision what to say (`statuses.py`). Invariant: an unchanged status is neither written nor told again.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec
import structlog
from msgspec import UNSET

from autowasm.api.status import ConditionType, Phase, Pods, Status, utc_now, with_loaded
from autowasm.controller.interfaces import Announce, Publisher, announce_nothing
from autowasm.controller.pods.podstatus import Said
from autowasm.controller.subject import Subject
from autowasm.kube.resources import ObjectKey
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class StatusReporter:
    """One for the process. `pods` gives what goes into `status.pods`; None: not known now."""

    def __init__(
        self,
        publisher: Publisher,
        *,
        metrics: Metrics,
        pods: Callable[[ObjectKey], Awaitable[Said | None]] | None = None,
        announce: Announce = announce_nothing,
    ) -> None:
        self._publisher = publisher
        self._metrics = metrics
        self._pods = pods
        self._announce = announce
        self._phases: dict[ObjectKey, Phase] = {}
        self._counts: Counter[Phase] = Counter()
        for phase in Phase:  # before there is any: an absent series is no zero to an alert
            metrics.autowasms.labels(phase.value).set(0)

    async def write(self, subject: Subject, status: Status) -> None:
        """Write it if it differs from the one before. Raises what the write raises."""
        previous = subject.previous
        if status != previous:
            said = await self._pods(subject.key) if self._pods is not None else None
            if said is None and _names_another_module(status, previous):
                said = _only_counts(status)
            if said is not None:
                conditions = with_loaded(status.conditions, said[1], now=utc_now())
                status = msgspec.structs.replace(status, pods=said[0], conditions=conditions)
            await self._publisher.write_status(subject.key, subject.document, status.to_dict())
            if status.phase is not previous.phase or status.message != previous.message:
                _log.info(
                    "phase",
                    key=str(subject.key),
                    phase=status.phase.value,
                    message=status.message,
                )
                self._tell(subject, status)
        self.seen(subject.key, status)

    def seen(self, key: ObjectKey, status: Status) -> None:
        """Count the object under its phase, and name it if it is not Synced."""
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
        """The object is gone."""
        self._metrics.objects.forget((key.namespace, key.name))
        before = self._phases.pop(key, None)
        if before is not None:
            self._count(before, -1)

    def _tell(self, subject: Subject, status: Status) -> None:
        """An Event for what people want to hear of: a new module, and trouble."""
        if status.phase in {Phase.DEGRADED, Phase.FAILED}:
            self._announce(subject.document, "Warning", status.phase.value, status.message)
        elif status.phase is Phase.SYNCED and status.module is not UNSET:
            before = f"sha256:{subject.in_place[:12]}" if subject.in_place else "nothing"
            after = f"sha256:{status.module.sha256[:12]}"
            if before != after:
                message = f"{before} → {after} ({status.module.origin})"
                self._announce(subject.document, "Normal", "Synced", message)

    def _count(self, phase: Phase, change: int) -> None:
        self._counts[phase] += change
        self._metrics.autowasms.labels(phase.value).set(self._counts[phase])


def _names_another_module(status: Status, previous: Status) -> bool:
    now = status.module.sha256 if status.module is not UNSET else ""
    return now != (previous.module.sha256 if previous.module is not UNSET else "")


def _only_counts(status: Status) -> Said | None:
    """Who fetched the module before says nothing of this one."""
    if status.pods is UNSET:
        return None
    return Pods(matched=status.pods.matched, injected=status.pods.injected), None


def _resolved_at(status: Status) -> float | None:
    """When the module in use was fetched, seconds since the epoch; None if the source names its digest, or there is none."""
    module = status.module
    if module is UNSET or "@sha256:" in module.source:
        return None
    try:
        return datetime.fromisoformat(module.fetched_at).timestamp()
    except ValueError:  # anybody may have written it
        return None
