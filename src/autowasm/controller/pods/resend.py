"""Resender: changes an EnvoyFilter so that sidecars which could not get its module fetch it again (ADR 17).

A sidecar requests a module a limited number of times and then answers 503 (or bypasses the filter) until its configuration
changes; neither metadata nor a restart of istiod changes it. So the URI gets `?r=<n+1>`. This drains connections in every sidecar
of the filter, so a resend needs evidence (ResendTriggers). The reconciler publishes what `wanted` returns. Invariants: only the
leader resends, and drops its plans when leading ends; `n` comes from the live EnvoyFilter, so a failover neither resets nor
repeats it; at most one resend for an object in `pause` seconds; a failure on one object stops no other; no check blocks the event
loop, however large the mesh is.
"""

import asyncio
import enum
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from msgspec import UNSET

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api import status as statuses
from autowasm.controller.interfaces import RecordEvent
from autowasm.controller.pods.loadreport import (
    DownloadEvidence,
    decode_object,
    epoch,
    number,
    read_log,
)
from autowasm.controller.pods.podmatching import Pod, everyone, has_target, in_steps
from autowasm.digest import Sha256Hex
from autowasm.kube.leaderelection import Leadership, while_leading
from autowasm.kube.resources import ObjectKey
from autowasm.settings import ResendSettings
from autowasm.telemetry.metrics import Metrics

Document = Mapping[str, Any]
_STEP: Final = 500
"""Addresses or Pods in one step: at most some tenths of a millisecond, unless a status has to be read for each."""


class Mesh(Protocol):
    """EnvoyFilters and the Pods with their sidecars."""

    def keys(self) -> frozenset[ObjectKey]:
        """All AutoWasms."""

    def document(self, key: ObjectKey) -> Document | None:
        """The AutoWasm."""

    def envoyfilter(self, key: ObjectKey) -> Document | None:
        """Our live EnvoyFilter."""

    def sidecars(self) -> Iterable[Pod]:
        """Pods that have a sidecar and have not ended. Pods may change during the iteration."""

    def selects(self, key: ObjectKey, pod: Pod) -> bool:
        """Whether the AutoWasm's selector matches the Pod."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A period in which no replica served; wall-clock seconds since the epoch."""

    begin: float
    end: float


@dataclass(slots=True)
class Answers:
    """The last answers to one address, from all replicas: ages in seconds; infinity: never."""

    downloaded: float = float("inf")
    refused: float = float("inf")

    @property
    def is_open(self) -> bool:
        """Whether the last answer was an error."""
        return self.refused < self.downloaded


@dataclass(frozen=True, slots=True)
class Sidecars:
    """The sidecars of one check. `pods`: each once."""

    pods: list[Pod]
    by_address: Mapping[str, Pod]


class ResendVerdict(enum.Enum):
    """Whether to resend."""

    NOTHING = enum.auto()
    TOO_YOUNG = enum.auto()
    """The evidence may suffice later."""
    ENOUGH = enum.auto()


class ResendTriggers:
    """Checks one object for sidecars that could not get the module and will not request it again. `wall`: epoch seconds.

    * errors: a sidecar's last answer from any replica was an error, and it has sent no request for longer than its retry interval;
    * outage: no replica served for longer than the retries last; meanwhile a matched Pod started or the EnvoyFilter changed, and
      that Pod has not downloaded the module since. A refused connection leaves no trace, so an outage is inferred from the Lease
      (until when a replica lived) and from the uptime of each replica.

    A replica loses its download log at a restart, so a new leader may not know of downloads that its predecessor knew: the
    EnvoyFilter and the status count as evidence too. A sidecar that never asked may have the module in its own cache; it gets no
    resend. Invariant: nothing here waits or changes anything; a check of a large mesh runs in steps that yield to the event loop.
    """

    def __init__(self, mesh: Mesh, settings: ResendSettings, wall: Callable[[], float]) -> None:
        self._mesh = mesh
        self._settings = settings
        self._wall = wall

    def of_errors(
        self,
        key: ObjectKey,
        live: Document,
        sidecars: Sidecars,
        logged: Mapping[str, Answers],
        *,
        resent: float,
        has_module: Callable[[Pod], bool] = everyone,
    ) -> Generator[None, None, ResendVerdict]:
        """Whether a sidecar of this object got an error as its last answer and has stopped asking. `logged`: by address.

        `resent`: time of our last resend, seconds since the epoch. `has_module`: whether a Pod should have it (staged rollouts).
        """
        verdict = ResendVerdict.NOTHING
        for step, (address, one) in enumerate(logged.items()):
            if step % _STEP == _STEP - 1:
                yield
            if not one.is_open:
                continue
            pod = sidecars.by_address.get(address)
            if pod is None or not self._mesh.selects(key, pod) or not has_module(pod):
                continue
            at = self._wall() - one.refused
            if at < pod.started or at < resent or _was_resent_after(at, live):
                continue  # another Pod had the address; or a resend followed
            if self._is_known_to_have_it(key, live, pod, since=at):
                continue
            if one.refused >= self._settings.given_up:
                return ResendVerdict.ENOUGH
            verdict = ResendVerdict.TOO_YOUNG
        return verdict

    def of_outage(
        self,
        key: ObjectKey,
        live: Document,
        sidecars: Sidecars,
        logged: Mapping[str, Answers],
        *,
        outage: Outage,
        has_module: Callable[[Pod], bool] = everyone,
    ) -> Generator[None, None, bool]:
        """Whether a sidecar of this object needed the module during the outage and has not downloaded it since."""
        since_end = self._wall() - outage.end
        if since_end < self._settings.settle or _was_resent_after(outage.end, live):
            return False
        at = changed_at(live)
        changed = _is_within(at, outage)
        for step, pod in enumerate(sidecars.pods):
            if step % _STEP == _STEP - 1:
                yield
            if not changed and not _is_within(pod.started, outage):
                continue
            if not self._mesh.selects(key, pod) or not has_module(pod):
                continue
            # A proxy sends all its requests from one of its addresses.
            answers = (logged.get(address, Answers()) for address in pod.addresses)
            if any(one.downloaded <= since_end for one in answers):
                continue
            if not self._is_known_to_have_it(key, live, pod, since=at if changed else pod.started):
                return True
        return False

    def _is_known_to_have_it(
        self, key: ObjectKey, live: Document, pod: Pod, *, since: float
    ) -> bool:
        """Whether a status that was written later shows it."""
        record, document = envoyfilters.record_of(dict(live)), self._mesh.document(key) or {}
        status = statuses.read(document.get("status"))
        if record is None or status.pods is UNSET or epoch(status.pods.time) < since:
            return False
        evidence = DownloadEvidence()
        for _ in evidence.believe(status, record.sha256, [pod]):
            pass  # one Pod takes one step
        return pod.uid in evidence.fetched


def _is_within(moment: float, outage: Outage) -> bool:
    """`moment` may be truncated to whole seconds, like all times of the API (`metav1.Time`)."""
    return math.floor(outage.begin) <= moment <= outage.end


def changed_at(live: Document) -> float:
    """Last change of the EnvoyFilter, seconds since the epoch; 0 if unknown."""
    metadata = live.get("metadata") or {}
    times = [one.get("time") for one in metadata.get("managedFields") or ()]
    times.append(metadata.get("creationTimestamp"))
    return max((epoch(text) for text in times if isinstance(text, str)), default=0.0)


def _was_resent_after(moment: float, live: Document) -> bool:
    """Whether there was a resend since then, according to the EnvoyFilter."""
    counts = (envoyfilters.resend_count_of(live, one) for one in envoyfilters.digests_of(live))
    return changed_at(live) > moment and any(counts)


_log = structlog.get_logger(__name__)


class DownloadLogs(Protocol):
    """The download logs of all replicas, as JSON documents of `server/downloadlog.py`."""

    async def query(self, path: str) -> list[bytes]:
        """`/seen` or `/seen/<sha256>` of every replica, our own included."""


@dataclass(frozen=True, slots=True)
class _Due:
    sha256: str
    count: int


class Resender:
    """One per process. `requeue` queues a key for the reconciler.

    Every replica that started during an outage detects it; a later leader leaves the resend to its predecessor if that leader had
    time for it.
    """

    def __init__(
        self,
        mesh: Mesh,
        logs: DownloadLogs,
        *,
        is_stored: Callable[[Sha256Hex], bool],
        requeue: Callable[[ObjectKey], None],
        record_event: RecordEvent,
        metrics: Metrics,
        settings: ResendSettings,
        outage: Outage | None = None,
        others_led: Callable[[], float] = lambda: float("-inf"),
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`others_led`: the last known time at which another replica led, in the loop's time."""
        self._mesh = mesh
        self._logs = logs
        self._is_stored = is_stored
        self._requeue = requeue
        self._record_event = record_event
        self._metrics = metrics
        self._settings = settings
        self._outage = outage
        self._others_led = others_led
        self._wall = wall
        self._errors: dict[str, int] = {}
        """By replica: the number of errors at the last check."""
        self._open = False
        """Whether an error was too young, or a resend for an object was too recent."""
        self._due: dict[ObjectKey, _Due] = {}
        self._resent: dict[ObjectKey, float] = {}
        self._triggers = ResendTriggers(mesh, settings, wall)

    def wanted(self, key: ObjectKey, live: Document | None, sha256: str) -> int:
        """The `r` to publish the module with; a new module has none."""
        current = envoyfilters.resend_count_of(live, sha256) if live is not None else 0
        due = self._due.get(key)
        if due is None or due.sha256 != sha256:
            return current
        return max(current, due.count)

    async def run(self, leadership: Leadership) -> None:
        """Check every `interval` seconds while leading, forever."""
        await while_leading(leadership, self._lead)

    async def _lead(self) -> None:
        settings, led = self._settings, self._wall() - (self._now() - self._others_led())
        if self._outage is not None and led > self._outage.end + settings.settle + settings.pause:
            self._outage = None  # already resent, or no sidecar was affected
        try:
            while True:
                await asyncio.sleep(self._settings.interval)
                await self.check()
        except asyncio.CancelledError:
            # Another replica leads: its writes count from now on, even with a lower `r` than planned here.
            self._due.clear()
            raise

    async def check(self) -> None:
        """Check all objects, and resend modules as needed."""
        if not await self._needs_check():
            return
        self._open = False
        sidecars = await in_steps(self._sidecars())
        keys = self._mesh.keys()
        for gone in (self._due.keys() | self._resent.keys()) - keys:
            self._due.pop(gone, None)
            self._resent.pop(gone, None)
        logged: dict[str, dict[str, Answers]] = {}
        for key in sorted(keys):
            try:
                resent = await self._check_object(key, sidecars, logged)
            except Exception:  # supervised edge: one object must not stop the others
                _log.exception("resend failed unexpectedly", key=str(key))
                self._metrics.unexpected_errors.labels("resend").inc()
                self._open = True
                resent = False
            await asyncio.sleep(self._settings.pace if resent else 0)
        outage = self._outage
        if outage is not None and self._wall() >= outage.end + self._settings.settle:
            self._outage = None

    def _sidecars(self) -> Generator[None, None, Sidecars]:
        by_address: dict[str, Pod] = {}
        pods: list[Pod] = []
        for pod in self._mesh.sidecars():
            if len(pods) % _STEP == _STEP - 1:
                yield
            pods.append(pod)
            for address in pod.addresses:
                by_address[address] = pod
        return Sidecars(pods, by_address)

    async def _check_object(
        self, key: ObjectKey, sidecars: Sidecars, logged: dict[str, dict[str, Answers]]
    ) -> bool:
        """Whether there was a resend. `logged`: the answers of this check, by module."""
        live = self._mesh.envoyfilter(key)
        if live is None:
            return False
        records = envoyfilters.records_of(dict(live))
        is_new = has_target(self._mesh.document(key) or {}) if len(records) > 1 else everyone
        for place, record in enumerate(records):
            sha256 = record.sha256
            if not self._is_stored(sha256):
                continue
            has_module = _not(is_new) if place else is_new
            if sha256 not in logged:
                logged[sha256] = await self._query(sha256)
            reason = await self._reason(key, live, sidecars, logged[sha256], has_module=has_module)
            if reason is None:
                continue
            if self._recently(key):
                self._open = True
                return False
            self._resend(key, live, sha256, reason)
            return True
        return False

    async def _needs_check(self) -> bool:
        """Cheap while there are no errors: one small request to each replica, and none about a module."""
        errors, up = {}, 0.0
        for document in await self._logs.query("/seen"):
            found = decode_object(document)
            errors[str(found.get("instance"))] = number(found.get("errors"))
            up = max(up, number(found.get("up")))
        changed = any(count > self._errors.get(name, 0) for name, count in errors.items())
        self._errors = {name: int(count) for name, count in errors.items()}
        if self._outage is not None:
            end = min(self._outage.end, self._wall() - up)  # another replica started earlier
            short = end - self._outage.begin < self._settings.outage
            self._outage = None if short else Outage(self._outage.begin, end)
        return changed or self._open or self._outage is not None

    async def _query(self, sha256: str) -> dict[str, Answers]:
        documents = await self._logs.query(f"/seen/{sha256}")
        return await in_steps(_merged(documents))

    async def _reason(
        self,
        key: ObjectKey,
        live: Document,
        sidecars: Sidecars,
        logged: Mapping[str, Answers],
        *,
        has_module: Callable[[Pod], bool],
    ) -> str | None:
        resent = self._wall() - (self._now() - self._resent.get(key, float("-inf")))
        found = await in_steps(
            self._triggers.of_errors(
                key, live, sidecars, logged, resent=resent, has_module=has_module
            )
        )
        self._open |= found is ResendVerdict.TOO_YOUNG
        if found is ResendVerdict.ENOUGH:
            return "errors"
        if self._outage is not None and await in_steps(
            self._triggers.of_outage(
                key, live, sidecars, logged, outage=self._outage, has_module=has_module
            )
        ):
            return "outage"
        return None

    def _recently(self, key: ObjectKey) -> bool:
        return self._now() - self._resent.get(key, float("-inf")) < self._settings.pause

    def _resend(self, key: ObjectKey, live: Document, sha256: Sha256Hex, reason: str) -> None:
        count = envoyfilters.resend_count_of(live, sha256) + 1
        self._due[key] = _Due(sha256, count)
        self._resent[key] = self._now()
        self._metrics.resends.labels(reason).inc()
        _log.warning(
            "resending the module", key=str(key), digest=sha256, reason=reason, count=count
        )
        document = self._mesh.document(key)
        if document is not None:
            why = {
                "errors": "some sidecars got an error for the module and no longer retry",
                "outage": "wasmer was unavailable for longer than sidecars retry",
            }[reason]
            message = f"{why}: sha256:{sha256[:12]} is resent to them (r={count})"
            self._record_event(document, "Warning", "ModuleResent", message)
        self._requeue(key)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _not(condition: Callable[[Pod], bool]) -> Callable[[Pod], bool]:
    return lambda pod: not condition(pod)


def _merged(documents: list[bytes]) -> Generator[None, None, dict[str, Answers]]:
    """The answers by address, over all replicas."""
    merged: dict[str, Answers] = {}
    for document in documents:
        _, addresses = read_log(document)
        for step, (address, ages) in enumerate(addresses):
            if step % _STEP == _STEP - 1:
                yield
            one = merged.setdefault(address, Answers())
            one.downloaded = min(one.downloaded, number(ages.get("ok"), float("inf")))
            one.refused = min(one.refused, number(ages.get("error"), float("inf")))
    return merged
