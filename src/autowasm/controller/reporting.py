"""StatusReporter: writes a status that differs, and says in log, Events and metrics what people want to hear of.

Not the decision what to say (`statuses.py`). Invariant: an unchanged status is neither written nor told again.
"""

from collections import Counter
from collections.abc import Callable

import msgspec
import structlog
from msgspec import UNSET

from autowasm.api.status import Phase, Pods, Status
from autowasm.controller.interfaces import Announce, Publisher, announce_nothing
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
        pods: Callable[[ObjectKey], Pods | None] | None = None,
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
            pods = self._pods(subject.key) if self._pods is not None else None
            if pods is not None:
                status = msgspec.structs.replace(status, pods=pods)
            await self._publisher.write_status(subject.key, subject.document, status.to_dict())
            if status.phase is not previous.phase or status.message != previous.message:
                _log.info(
                    "phase",
                    key=str(subject.key),
                    phase=status.phase.value,
                    message=status.message,
                )
                self._tell(subject, status)
        self.seen(subject.key, status.phase)

    def seen(self, key: ObjectKey, phase: Phase) -> None:
        """Count the object under this phase."""
        before = self._phases.get(key)
        if before is not phase:
            self._phases[key] = phase
            self._count(phase, 1)
            if before is not None:
                self._count(before, -1)

    def forget(self, key: ObjectKey) -> None:
        """The object is gone."""
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
