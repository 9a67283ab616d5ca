"""PodStatusWriter: keeps `status.pods` and the conditions `Loaded` and `Running` up to date, within a budget of writes.

It is not part of a reconcile: a change of Pods changes no decision. Invariants: at most `RATE` writes a second in total, and one
in `EACH` seconds for each object; an unchanged value is not written, and a value that the server dropped (because of an older
CRD) is not written again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from autowasm.api import status as statuses
from autowasm.api.status import Condition, ConditionType, Pods
from autowasm.controller.interfaces import Publisher
from autowasm.controller.pods.loadreport import LoadReport
from autowasm.controller.pods.runningreport import RunningReport
from autowasm.kube.errors import ApiError
from autowasm.kube.leaderelection import NotLeading
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue

_log = structlog.get_logger(__name__)


class PodReport(NamedTuple):
    """The parts of a status about Pods. The conditions are None where no module is published."""

    pods: Pods
    loaded: Condition | None = None
    running: Condition | None = None

    @property
    def conditions(self) -> tuple[tuple[ConditionType, Condition | None], ...]:
        """Each condition with its type."""
        return (ConditionType.LOADED, self.loaded), (ConditionType.RUNNING, self.running)


_TYPES: Final = frozenset({ConditionType.LOADED.value, ConditionType.RUNNING.value})

RATE = 5.0
"""Writes a second."""
EACH = 60.0
"""Seconds between two writes for one object."""
SETTLE = 1.0
"""Seconds: the Pods of one rollout step change within a second and cause one write."""


def pod_report(
    load: LoadReport, running: RunningReport | None, *, previous: Pods | UnsetType, now: str
) -> PodReport:
    """Combines both reports. `previous`: the value in the status; its time stays while everything else is the same."""
    if running is None:
        return PodReport(load.pods.without_running(), load.loaded)
    pods = msgspec.structs.replace(
        load.pods, running=running.running, not_running=running.not_running
    )
    if not load.is_kept:
        time = previous.time if previous is not UNSET and pods.same(previous) else now
        pods = msgspec.structs.replace(pods, time=time)
    return PodReport(pods, load.loaded, running.condition)


class PodStatusWriter:
    """Handlers may call `touch`; `run` it in a TaskGroup."""

    def __init__(
        self,
        *,
        report: Callable[[ObjectKey], Awaitable[PodReport | None]],
        document: Callable[[ObjectKey], Mapping[str, Any] | None],
        publisher: Publisher,
        unexpected: Callable[[], None] = lambda: None,
    ) -> None:
        """`unexpected` is called after an unexpected error."""
        self._unexpected = unexpected
        self._report = report
        self._document = document
        self._publisher = publisher
        self._queue: WorkQueue[ObjectKey] = WorkQueue()
        self._last_write: dict[ObjectKey, float] = {}
        self._stored_as: dict[ObjectKey, tuple[PodReport, Any]] = {}
        """The last write, and its stored form: an older CRD drops unknown fields."""
        self._waiting: set[ObjectKey] = set()
        """Touched objects without a status."""

    def touch(self, key: ObjectKey) -> None:
        """The Pods that this object matches may have changed."""
        now = asyncio.get_running_loop().time()
        allowed = self._last_write.get(key, now - EACH) + EACH
        self._queue.add_after(key, max(SETTLE, allowed - now))

    def counting(self, key: ObjectKey) -> None:
        """A report on the Pods begins, which has all earlier changes."""
        self._waiting.discard(key)

    def observe(self, key: ObjectKey, document: Mapping[str, Any]) -> None:
        """The object was read. Its Pods may have changed while its first status was written."""
        if key in self._waiting and _written_status(document) is not None:
            self._waiting.discard(key)
            self.touch(key)

    def forget(self, key: ObjectKey) -> None:
        """The object was deleted."""
        self._waiting.discard(key)
        self._last_write.pop(key, None)
        self._stored_as.pop(key, None)

    async def run(self) -> None:
        """Write changes, forever."""
        while True:
            key = await self._queue.get()
            try:
                wrote = await self._write(key)
                self._queue.forget(key)
            except (ApiError, NotLeading) as error:
                wrote = True
                retry_after = error.retry_after if isinstance(error, ApiError) else None
                self._queue.add_rate_limited(key, at_least=retry_after or 0.0)
                _log.debug("pod counts not written", key=str(key), error=str(error))
            except Exception:  # supervised edge: one object must not stop the others
                wrote = True
                self._queue.add_rate_limited(key)
                _log.exception("pod counts failed unexpectedly", key=str(key))
                self._unexpected()
            finally:
                self._queue.done(key)
            if wrote:
                await asyncio.sleep(1.0 / RATE)
            else:
                await asyncio.sleep(0)  # yields: counting a large mesh takes long

    async def _write(self, key: ObjectKey) -> bool:
        found = self._document(key)
        if _written_status(found) is None:
            if found is not None:
                self._waiting.add(key)
            return False  # no status yet: the reconciler writes it with counts
        report = await self._report(key)
        document = self._document(key)
        status = _written_status(document)
        if report is None or document is None or status is None:
            return False
        if _is_reported(status, report) or self._was_sent(key, status, report):
            return False
        self._last_write[key] = asyncio.get_running_loop().time()
        wrote = await self._publisher.write_status(key, document, with_report(status, report))
        made = self._document(key)
        self._stored_as[key] = report, _about_pods(made.get("status") if made is not None else None)
        return wrote

    def _was_sent(self, key: ObjectKey, status: Mapping[str, Any], report: PodReport) -> bool:
        sent = self._stored_as.get(key)
        return sent is not None and _same(sent[0], report) and sent[1] == _about_pods(status)


def _written_status(document: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    status = document.get("status") if document is not None else None
    return status if status is not None and statuses.is_written(status) else None


def with_report(status: Mapping[str, Any], report: PodReport) -> dict[str, Any]:
    """The status as JSON with this report."""
    conditions = with_conditions_of(report, statuses.read(status).conditions)
    new = msgspec.json.encode({**status, "pods": report.pods, "conditions": conditions})
    result: dict[str, Any] = msgspec.json.decode(new)
    return result


def with_conditions_of(
    report: PodReport, conditions: tuple[Condition, ...]
) -> tuple[Condition, ...]:
    """`conditions` with those of the report."""
    for kind, condition in report.conditions:
        conditions = statuses.with_condition(conditions, kind, condition, now=statuses.utc_now())
    return conditions


def _is_reported(status: Mapping[str, Any], report: PodReport) -> bool:
    found = statuses.read(status)
    if found.pods is UNSET:
        return False
    conditions = (found.condition(kind) for kind, _ in report.conditions)
    return _same(PodReport(found.pods, *conditions), report)


def _same(one: PodReport, other: PodReport) -> bool:
    return one.pods.same(other.pods) and all(
        mine is theirs if mine is None or theirs is None else mine.same_state(theirs)
        for (_, mine), (_, theirs) in zip(one.conditions, other.conditions, strict=True)
    )


def _about_pods(status: Mapping[str, Any] | None) -> Any:
    """The parts of a status about Pods, for comparison only."""
    status = status or {}
    own = [one for one in status.get("conditions") or () if one.get("type") in _TYPES]
    return status.get("pods"), own
