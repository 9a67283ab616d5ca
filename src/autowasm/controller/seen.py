"""Seen: what is known of one module's downloads, put together from what replicas saw and what a leader before us wrote.

Not the asking (`loading.py`), nor the judgement (`proof.py`). Invariants: a download counts for the only Pod that has its address,
and only after that Pod's start; what is taken over from a status is what that status says of every Pod.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from msgspec import UNSET

from autowasm.api.status import Status
from autowasm.kube.pods import Pod

NEVER = float("inf")


@dataclass(slots=True)
class Seen:
    """Of one module. Times are seconds since the epoch."""

    fetched: dict[bytes, float] = field(default_factory=dict)
    """Uids of Pods to the time of the download; 0: before our time."""
    refused: dict[bytes, int] = field(default_factory=dict)
    """Uids of Pods whose last answer was an error, to its status."""
    watched_since: float = NEVER
    """Every replica has watched since then; infinity if one did not answer."""
    strangers: bool = False
    """Whether somebody asked from an address that is no Pod's."""
    asked: bool = False
    """Whether replicas were asked at all."""

    def learn(
        self,
        documents: Iterable[bytes],
        *,
        now: float,
        complete: bool,
        pods_at: Callable[[str], Iterable[Pod]],
    ) -> None:
        """`documents` of `server.sightings`, asked for at `now`; `complete`: no replica is missing."""
        self.asked, self.strangers, self.refused = True, False, {}
        ups: list[float] = []
        fetched: dict[str, float] = {}
        errors: dict[str, tuple[float, int]] = {}
        for document in documents:
            found = loads(document)
            ups.append(number(found.get("up")))
            by_address = found.get("seen")
            for address, ages in by_address.items() if isinstance(by_address, dict) else ():
                if not isinstance(ages, dict):
                    continue
                if "ok" in ages:
                    fetched[address] = max(fetched.get(address, 0.0), now - number(ages["ok"]))
                if "error" in ages:
                    last = (now - number(ages["error"]), int(number(ages.get("status"))))
                    errors[address] = max(errors.get(address, last), last)
        self.watched_since = now - min(ups) if complete and ups else NEVER
        for address in fetched.keys() | errors.keys():
            pods = list(pods_at(address))
            if not pods:
                self.strangers = True
            if len(pods) == 1:
                self._note(pods[0], fetched.get(address, 0.0), *errors.get(address, (0.0, 0)))

    def _note(self, pod: Pod, at: float, refused: float, status: int) -> None:
        if not pod.started:
            return
        if refused >= pod.started and refused > at:
            self.refused[pod.uid] = (
                status  # also after a download: each filter chain asks for itself
            )
            self.fetched.pop(pod.uid, None)
        elif at >= pod.started:
            self.fetched[pod.uid] = at

    def believe(self, previous: Status, sha256: str, pods: Iterable[Pod]) -> None:
        """Take over who was counted as fetched, if the status tells of every Pod whether it had this module."""
        module, said = previous.module, previous.pods
        if module is UNSET or said is UNSET or said.fetched is UNSET or module.sha256 != sha256:
            return
        if said.matched - said.fetched != len(said.missing):
            return
        missing = {(one.namespace, one.name) for one in said.missing}
        written = epoch(said.time)
        believed = [
            pod.uid
            for pod in pods
            if pod.injected
            and 0 < pod.started < written
            and (pod.namespace, pod.name) not in missing
        ]
        if len(believed) <= said.fetched:
            for uid in believed:
                self.fetched.setdefault(uid, 0.0)


def epoch(text: str) -> float:
    """Seconds since the epoch; 0 for what is no time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def loads(document: bytes) -> dict[str, Any]:
    """What a replica said; empty if that cannot be read."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def number(value: object) -> float:
    """A number that may be one; 0 if it is none."""
    return float(value) if isinstance(value, int | float) and value >= 0 else 0.0
