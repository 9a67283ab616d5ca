"""Fights: how often an EnvoyFilter was put back, and when to stop (ADR 12).

Not the writing. Invariants: whatever the other side does (rewrite, delete, take our label off, raise or lower the count of
healings), it makes us write at most `PUT_BACK_MOST` times within `FIGHT_PAUSE`, until the user asks again; one that only
raises the count, which drains connections in every sidecar each time, is reported after as many times.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from autowasm.api import envoyfilter as envoyfilters
from autowasm.api.v1alpha1 import REFRESH_ANNOTATION
from autowasm.errors import AutoWasmError
from autowasm.kube.resources import ObjectKey

PUT_BACK_MOST: Final = 3
"""After so many times we stop: two controllers in a fight drain every connection of every sidecar, again and again."""
FIGHT_PAUSE: Final = 3600.0
"""Seconds. An edit so long after the last one is no fight but a person; a fight that we left stays left."""

_HEALS: Final = re.compile(rb'\?r=\d+"')
"""How often it was healed: the end of a uri (`api.envoyfilter`)."""


@dataclass(slots=True)
class _Fight:
    asked: tuple[Any, ...]
    """Generation and refresh annotation: what the user changes to have us begin again."""
    wanted: Mapping[str, Any] | None = None
    """What we wrote last."""
    rounds: int = 0
    last: float = 0.0
    is_raised: bool = False
    """Whether another client raised the count of healings."""


@dataclass(slots=True)
class _Highest:
    """The highest count of healings that is known of these modules: our own healing goes beyond it."""

    about: tuple[Any, ...]
    count: int = 0


class Fights:
    """By object key."""

    def __init__(self) -> None:
        self._fights: dict[ObjectKey, _Fight] = {}
        self._heals: dict[ObjectKey, _Highest] = {}

    def puts_back(
        self,
        key: ObjectKey,
        owner: Mapping[str, Any],
        wanted: Mapping[str, Any],
        *,
        live: Mapping[str, Any] | None = None,
    ) -> bool:
        """True if to write it is to put it back: we wrote the same before, but for the count of healings. Raises as `check`.

        `live`: what it would replace. Our own healing is no round: it writes a count that is higher than that of `live`, and
        than any before. All other counts come from `live`, so they are the other side's.
        """
        highest, count = self._highest(key, owner, wanted), _heals(wanted, wanted)
        raised = live is not None and _heals(live, wanted) == count
        is_healing = count > highest.count and not raised
        highest.count = max(
            highest.count, count
        )  # also if the write fails: it may have been stored
        fight = self._of(key, owner)
        if fight is None or fight.wanted is None or not _same_but_heals(fight.wanted, wanted):
            return False
        if is_healing:
            return False
        self.check(key, owner)
        return True

    def in_place(self, key: ObjectKey, owner: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Nothing has to be written. True if that is so because the count was taken from an edit that raised it.

        Raises as `check`, if that was done often enough.
        """
        is_known = self._is_known(key, owner, wanted)
        highest, count = self._highest(key, owner, wanted), _heals(wanted, wanted)
        raised = is_known and count > highest.count
        highest.count = max(highest.count, count)
        fight = self._of(key, owner)
        if raised:
            if fight is None:
                fight = self._fights[key] = _Fight(_asked(owner))
            fight.is_raised = True
        if fight is not None and fight.is_raised:
            self.check(key, owner)
        return raised

    def check(self, key: ObjectKey, owner: Mapping[str, Any]) -> None:
        """Raises AutoWasmError (`Mutated`) once it was put back often enough."""
        fight = self._of(key, owner)
        if fight is not None and fight.rounds >= PUT_BACK_MOST:
            raise AutoWasmError(
                f"something rewrites or deletes the EnvoyFilter {key} again and again ({fight.rounds} times); it is left as "
                "it is now: find out who does it "
                "(kubectl get envoyfilter -o yaml --show-managed-fields; the API server's audit log), then set the "
                "annotation wasm.tcm.io/refresh to a new value or change the AutoWasm",
                reason="Mutated",
            )

    def wrote(self, key: ObjectKey, owner: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """It was written."""
        fight = self._of(key, owner)
        if fight is None or not (fight.wanted is None or _same_but_heals(fight.wanted, wanted)):
            self._fights[key] = _Fight(_asked(owner), wanted)
        else:
            fight.wanted = wanted

    def count(self, key: ObjectKey, owner: Mapping[str, Any]) -> int:
        """One more round. Returns how many by now."""
        now = asyncio.get_running_loop().time()
        fight = self._of(key, owner)
        if fight is None:
            fight = self._fights[key] = _Fight(_asked(owner))
        fight.rounds = fight.rounds + 1 if now - fight.last < FIGHT_PAUSE else 1
        fight.last = now
        return fight.rounds

    def forget(self, key: ObjectKey) -> None:
        """The AutoWasm is gone."""
        self._fights.pop(key, None)
        self._heals.pop(key, None)

    def forget_all(self) -> None:
        """Another replica leads: what it sees and does is unknown here."""
        self._fights.clear()
        self._heals.clear()

    def _of(self, key: ObjectKey, owner: Mapping[str, Any]) -> _Fight | None:
        fight = self._fights.get(key)
        return fight if fight is not None and fight.asked == _asked(owner) else None

    def _is_known(
        self, key: ObjectKey, owner: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> bool:
        known = self._heals.get(key)
        return known is not None and known.about == _about(owner, wanted)

    def _highest(
        self, key: ObjectKey, owner: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> _Highest:
        if not self._is_known(key, owner, wanted):
            self._heals[key] = _Highest(_about(owner, wanted))
        return self._heals[key]


def _about(owner: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Any, ...]:
    """A user who asks again, and a module of another digest, begin a count."""
    return (*_asked(owner), *envoyfilters.digests_of(wanted))


def _asked(owner: Mapping[str, Any]) -> tuple[Any, ...]:
    metadata = owner["metadata"]
    annotations = metadata.get("annotations") or {}
    return metadata.get("uid"), metadata.get("generation"), annotations.get(REFRESH_ANNOTATION)


def _heals(envoyfilter: Mapping[str, Any], wanted: Mapping[str, Any]) -> int:
    return max(
        (envoyfilters.heal_count_of(envoyfilter, one) for one in envoyfilters.digests_of(wanted)),
        default=0,
    )


def _same_but_heals(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one == other or _without_heals(one) == _without_heals(other)


def _without_heals(envoyfilter: Mapping[str, Any]) -> bytes:
    return _HEALS.sub(b'"', msgspec.json.encode(envoyfilter, order="sorted"))
