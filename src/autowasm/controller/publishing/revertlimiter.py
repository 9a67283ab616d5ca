"""Fights: how often an EnvoyFilter was put back, and when to stop (ADR 12).

Not the writing. Invariants: whatever the other side does (rewrite, delete, take our label off, raise or lower the count of
healings), it makes us write at most `MAX_REVERTS` times within `REVERT_WINDOW`, until the user asks again; one that only
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

MAX_REVERTS: Final = 3
"""After so many times we stop: two controllers in a fight drain every connection of every sidecar, again and again."""
REVERT_WINDOW: Final = 3600.0
"""Seconds. An edit so long after the last one is no fight but a person; a fight that we left stays left."""

_RESENDS: Final = re.compile(rb'\?r=\d+"')
"""How often it was healed: the end of a uri (`api.envoyfilter`)."""


@dataclass(slots=True)
class _Reverts:
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


class RevertLimiter:
    """By object key."""

    def __init__(self) -> None:
        self._reverts: dict[ObjectKey, _Reverts] = {}
        self._resends: dict[ObjectKey, _Highest] = {}

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
        highest, count = self._highest(key, owner, wanted), _resends(wanted, wanted)
        raised = live is not None and _resends(live, wanted) == count
        is_resend = count > highest.count and not raised
        highest.count = max(
            highest.count, count
        )  # also if the write fails: it may have been stored
        reverts = self._of(key, owner)
        if (
            reverts is None
            or reverts.wanted is None
            or not _same_but_resends(reverts.wanted, wanted)
        ):
            return False
        if is_resend:
            return False
        self.check(key, owner)
        return True

    def in_place(self, key: ObjectKey, owner: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Nothing has to be written. True if that is so because the count was taken from an edit that raised it.

        Raises as `check`, if that was done often enough.
        """
        is_known = self._is_known(key, owner, wanted)
        highest, count = self._highest(key, owner, wanted), _resends(wanted, wanted)
        raised = is_known and count > highest.count
        highest.count = max(highest.count, count)
        reverts = self._of(key, owner)
        if raised:
            if reverts is None:
                reverts = self._reverts[key] = _Reverts(_asked(owner))
            reverts.is_raised = True
        if reverts is not None and reverts.is_raised:
            self.check(key, owner)
        return raised

    def check(self, key: ObjectKey, owner: Mapping[str, Any]) -> None:
        """Raises AutoWasmError (`Mutated`) once it was put back often enough."""
        reverts = self._of(key, owner)
        if reverts is not None and reverts.rounds >= MAX_REVERTS:
            raise AutoWasmError(
                f"something rewrites or deletes the EnvoyFilter {key} again and again ({reverts.rounds} times); it is left as "
                "it is now: find out who does it "
                "(kubectl get envoyfilter -o yaml --show-managed-fields; the API server's audit log), then set the "
                "annotation wasm.tcm.io/refresh to a new value or change the AutoWasm",
                reason="Mutated",
            )

    def wrote(self, key: ObjectKey, owner: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """It was written."""
        reverts = self._of(key, owner)
        if reverts is None or not (
            reverts.wanted is None or _same_but_resends(reverts.wanted, wanted)
        ):
            self._reverts[key] = _Reverts(_asked(owner), wanted)
        else:
            reverts.wanted = wanted

    def count(self, key: ObjectKey, owner: Mapping[str, Any]) -> int:
        """One more round. Returns how many by now."""
        now = asyncio.get_running_loop().time()
        reverts = self._of(key, owner)
        if reverts is None:
            reverts = self._reverts[key] = _Reverts(_asked(owner))
        reverts.rounds = reverts.rounds + 1 if now - reverts.last < REVERT_WINDOW else 1
        reverts.last = now
        return reverts.rounds

    def forget(self, key: ObjectKey) -> None:
        """The AutoWasm is gone."""
        self._reverts.pop(key, None)
        self._resends.pop(key, None)

    def forget_all(self) -> None:
        """Another replica leads: what it sees and does is unknown here."""
        self._reverts.clear()
        self._resends.clear()

    def _of(self, key: ObjectKey, owner: Mapping[str, Any]) -> _Reverts | None:
        reverts = self._reverts.get(key)
        return reverts if reverts is not None and reverts.asked == _asked(owner) else None

    def _is_known(
        self, key: ObjectKey, owner: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> bool:
        known = self._resends.get(key)
        return known is not None and known.about == _about(owner, wanted)

    def _highest(
        self, key: ObjectKey, owner: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> _Highest:
        if not self._is_known(key, owner, wanted):
            self._resends[key] = _Highest(_about(owner, wanted))
        return self._resends[key]


def _about(owner: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Any, ...]:
    """A user who asks again, and a module of another digest, begin a count."""
    return (*_asked(owner), *envoyfilters.digests_of(wanted))


def _asked(owner: Mapping[str, Any]) -> tuple[Any, ...]:
    metadata = owner["metadata"]
    annotations = metadata.get("annotations") or {}
    return metadata.get("uid"), metadata.get("generation"), annotations.get(REFRESH_ANNOTATION)


def _resends(envoyfilter: Mapping[str, Any], wanted: Mapping[str, Any]) -> int:
    return max(
        (envoyfilters.resend_count_of(envoyfilter, one) for one in envoyfilters.digests_of(wanted)),
        default=0,
    )


def _same_but_resends(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one == other or _without_resends(one) == _without_resends(other)


def _without_resends(envoyfilter: Mapping[str, Any]) -> bytes:
    return _RESENDS.sub(b'"', msgspec.json.encode(envoyfilter, order="sorted"))
