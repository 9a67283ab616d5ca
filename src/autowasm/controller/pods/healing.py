"""Healing: an EnvoyFilter is given to its proxies once more after they could not get its module (design D16).

A proxy asks for a module a bounded number of times and then answers 503 (or passes requests by) until the configuration changes;
neither metadata nor a restart of istiod changes it. So the uri gets `?r=<n+1>`, which drains connections in every sidecar of the
filter: it is done only on evidence (`symptoms.py`), and never "to be sure". Every replica that started in an outage knows of it:
one that leads later leaves it to the leader before, if that one had the time to heal.

Not the writing (the reconciler publishes what `wanted` says). Invariants: only the leader heals; `n` is read from the live
EnvoyFilter, so a failover neither resets nor repeats it; one healing for an object in `pause` seconds.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from autowasm.api import envoyfilter as envoyfilters
from autowasm.controller.interfaces import Announce
from autowasm.controller.pods.seen import loads, number
from autowasm.controller.pods.symptoms import Answers, Document, Mesh, Outage, Symptoms, Verdict
from autowasm.digest import Sha256Hex
from autowasm.kube.leadership import Leadership, while_leading
from autowasm.kube.pods import Pod
from autowasm.kube.resources import ObjectKey
from autowasm.settings import HealingSettings
from autowasm.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)


class Witnesses(Protocol):
    """What all replicas saw, as JSON documents of `server.sightings`."""

    async def ask(self, path: str) -> list[bytes]:
        """`/seen` or `/seen/<sha256>` of every replica, our own included."""


@dataclass(frozen=True, slots=True)
class _Due:
    sha256: str
    count: int


class Healing:
    """One for the process. `requeue` has the reconciler look at a key again."""

    def __init__(
        self,
        mesh: Mesh,
        witnesses: Witnesses,
        *,
        is_stored: Callable[[Sha256Hex], bool],
        requeue: Callable[[ObjectKey], None],
        announce: Announce,
        metrics: Metrics,
        settings: HealingSettings,
        outage: Outage | None = None,
        others_led: Callable[[], float] = lambda: float("-inf"),
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`others_led`: until when another replica led, in the loop's time, as far as we saw it."""
        self._mesh = mesh
        self._witnesses = witnesses
        self._is_stored = is_stored
        self._requeue = requeue
        self._announce = announce
        self._metrics = metrics
        self._settings = settings
        self._outage = outage
        self._others_led = others_led
        self._wall = wall
        self._errors: dict[str, int] = {}
        """By replica: how many errors it had given at the last look."""
        self._open = False
        """Whether some error was not yet old enough, or an object was not yet to be healed again."""
        self._due: dict[ObjectKey, _Due] = {}
        self._healed: dict[ObjectKey, float] = {}
        self._symptoms = Symptoms(mesh, settings, wall)

    def wanted(self, key: ObjectKey, live: Document | None, sha256: str) -> int:
        """The `r` with which the module is to be published; a new module begins without."""
        current = envoyfilters.heal_count_of(live, sha256) if live is not None else 0
        due = self._due.get(key)
        if due is None or due.sha256 != sha256:
            return current
        return max(current, due.count)

    async def run(self, leadership: Leadership) -> None:
        """Look every `interval` seconds while leading, for ever."""
        await while_leading(leadership, self._lead)

    async def _lead(self) -> None:
        settings, led = self._settings, self._wall() - (self._now() - self._others_led())
        if self._outage is not None and led > self._outage.end + settings.settle + settings.pause:
            self._outage = None  # it was healed, or had harmed nobody
        while True:
            await asyncio.sleep(self._settings.interval)
            await self.look()

    async def look(self) -> None:
        """Heal what has to be healed now."""
        if not await self._is_worth_a_look():
            return
        self._open = False
        pods = {address: pod for pod in self._mesh.sidecars() for address in pod.addresses}
        seen: dict[str, dict[str, Answers]] = {}
        for key, live, sha256 in list(self._published()):
            try:
                if sha256 not in seen:
                    seen[sha256] = await self._ask(sha256)
                healed = self._look_at(key, live, sha256, pods, seen[sha256])
            except Exception:  # supervised edge: one odd object must not stop the others
                _log.exception("healing failed unexpectedly", key=str(key))
                self._open = True
                continue
            if healed:
                await asyncio.sleep(self._settings.pace)
        outage = self._outage
        if outage is not None and self._wall() >= outage.end + self._settings.settle:
            self._outage = None

    def _look_at(
        self,
        key: ObjectKey,
        live: Document,
        sha256: Sha256Hex,
        pods: Mapping[str, Pod],
        seen: Mapping[str, Answers],
    ) -> bool:
        """Whether it was healed."""
        reason = self._reason(key, live, pods, seen)
        if reason is None:
            return False
        if self._recently(key):
            self._open = True
            return False
        self._heal(key, live, sha256, reason)
        return True

    async def _is_worth_a_look(self) -> bool:
        """Cheap while all is well: one small question to each replica, none about a module."""
        errors, up = {}, 0.0
        for document in await self._witnesses.ask("/seen"):
            found = loads(document)
            errors[str(found.get("instance"))] = number(found.get("errors"))
            up = max(up, number(found.get("up")))
        changed = any(count > self._errors.get(name, 0) for name, count in errors.items())
        self._errors = {name: int(count) for name, count in errors.items()}
        if self._outage is not None:
            end = min(self._outage.end, self._wall() - up)  # another replica was up before us
            short = end - self._outage.begin < self._settings.outage
            self._outage = None if short else Outage(self._outage.begin, end)
        return changed or self._open or self._outage is not None

    def _published(self) -> Iterator[tuple[ObjectKey, Document, Sha256Hex]]:
        for key in sorted(self._mesh.keys()):
            live = self._mesh.envoyfilter(key)
            record = envoyfilters.record_of(dict(live)) if live is not None else None
            if live is not None and record is not None and self._is_stored(record.sha256):
                yield key, live, record.sha256

    async def _ask(self, sha256: str) -> dict[str, Answers]:
        merged: dict[str, Answers] = {}
        for document in await self._witnesses.ask(f"/seen/{sha256}"):
            found = loads(document).get("seen")
            for address, ages in found.items() if isinstance(found, dict) else ():
                one = merged.setdefault(address, Answers())
                if isinstance(ages, dict):
                    one.downloaded = min(one.downloaded, number(ages.get("ok"), float("inf")))
                    one.refused = min(one.refused, number(ages.get("error"), float("inf")))
        return merged

    def _reason(
        self, key: ObjectKey, live: Document, pods: Mapping[str, Pod], seen: Mapping[str, Answers]
    ) -> str | None:
        healed = self._wall() - (self._now() - self._healed.get(key, float("-inf")))
        found = self._symptoms.of_errors(key, live, pods, seen, healed=healed)
        self._open |= found is Verdict.TOO_YOUNG
        if found is Verdict.ENOUGH:
            return "errors"
        if self._outage is not None and self._symptoms.of_outage(
            key, live, pods, seen, outage=self._outage
        ):
            return "outage"
        return None

    def _recently(self, key: ObjectKey) -> bool:
        return self._now() - self._healed.get(key, float("-inf")) < self._settings.pause

    def _heal(self, key: ObjectKey, live: Document, sha256: Sha256Hex, reason: str) -> None:
        count = envoyfilters.heal_count_of(live, sha256) + 1
        self._due[key] = _Due(sha256, count)
        self._healed[key] = self._now()
        self._metrics.heals.labels(reason).inc()
        _log.warning("healing", key=str(key), digest=sha256, reason=reason, count=count)
        document = self._mesh.document(key)
        if document is not None:
            why = {
                "errors": "some sidecars got an error for the module and have stopped asking",
                "outage": "wasmer was away for longer than sidecars try again",
            }[reason]
            message = f"{why}: sha256:{sha256[:12]} is given to them once more (r={count})"
            self._announce(document, "Warning", "Healed", message)
        self._requeue(key)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
