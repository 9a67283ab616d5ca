"""RevertLimiter: how often an EnvoyFilter was reverted, and when to stop (ADR 12).

Invariants: whatever another client does (rewrite, delete, remove our label, raise or lower the resend count), it causes at most
`MAX_REVERTS` writes within `REVERT_WINDOW` until the user requests a new try; a client that only raises the count, which drains
connections in every sidecar each time, is reported after the same number of times.
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
from autowasm.reasons import Reason

MAX_REVERTS: Final = 3
"""The limit of reverts: two controllers that revert each other's writes drain every connection of every sidecar, again and again."""
REVERT_WINDOW: Final = 3600.0
"""Seconds. An edit this long after the last one is a user's edit, not another controller's; reverts that stopped do not resume."""

_RESENDS: Final = re.compile(rb'\?r=\d+"')
"""The resend count, at the end of a uri (`api/envoyfilter.py`)."""


@dataclass(slots=True)
class _Reverts:
    trigger: tuple[Any, ...]
    """Generation and refresh annotation: the user changes them to request a new try."""
    desired: Mapping[str, Any] | None = None
    """Our last write."""
    rounds: int = 0
    last: float = 0.0
    is_raised: bool = False
    """Whether another client raised the resend count."""


@dataclass(slots=True)
class _Highest:
    """The highest known resend count of these modules; our own resend exceeds it."""

    about: tuple[Any, ...]
    count: int = 0


class RevertLimiter:
    """Reverts and resend counts by object key."""

    def __init__(self) -> None:
        self._reverts: dict[ObjectKey, _Reverts] = {}
        self._resends: dict[ObjectKey, _Highest] = {}

    def is_revert(
        self,
        key: ObjectKey,
        owner: Mapping[str, Any],
        desired: Mapping[str, Any],
        *,
        live: Mapping[str, Any] | None = None,
    ) -> bool:
        """True if the write is a revert: it equals our last write except for the resend count. Raises as `check`.

        `live`: the object to replace. Our own resend is not a revert: its count is higher than that of `live` and any earlier one.
        All other counts come from `live`, so the other client set them.
        """
        highest, count = self._highest(key, owner, desired), _resends(desired, desired)
        raised = live is not None and _resends(live, desired) == count
        is_resend = count > highest.count and not raised
        highest.count = max(
            highest.count, count
        )  # also before a write that fails: the server may have stored it
        reverts = self._of(key, owner)
        if (
            reverts is None
            or reverts.desired is None
            or not _same_but_resends(reverts.desired, desired)
        ):
            return False
        if is_resend:
            return False
        self.check(key, owner)
        return True

    def in_place(
        self, key: ObjectKey, owner: Mapping[str, Any], desired: Mapping[str, Any]
    ) -> bool:
        """Nothing has to be written. True if that is only so because we took over a resend count that another client raised.

        Raises as `check` if that happened too often.
        """
        is_known = self._is_known(key, owner, desired)
        highest, count = self._highest(key, owner, desired), _resends(desired, desired)
        raised = is_known and count > highest.count
        highest.count = max(highest.count, count)
        reverts = self._of(key, owner)
        if raised:
            if reverts is None:
                reverts = self._reverts[key] = _Reverts(_trigger(owner))
            reverts.is_raised = True
        if reverts is not None and reverts.is_raised:
            self.check(key, owner)
        return raised

    def check(self, key: ObjectKey, owner: Mapping[str, Any]) -> None:
        """Raises AutoWasmError (`Mutated`) after `MAX_REVERTS` reverts."""
        reverts = self._of(key, owner)
        if reverts is not None and reverts.rounds >= MAX_REVERTS:
            raise AutoWasmError(
                f"another client keeps changing or deleting EnvoyFilter {key} ({reverts.rounds} times); wasmer no longer "
                "reverts it: find the client "
                "(kubectl get envoyfilter -o yaml --show-managed-fields; the API server's audit log), then set the "
                "annotation wasm.tcm.io/refresh to a new value or change the AutoWasm",
                reason=Reason.MUTATED,
            )

    def wrote(self, key: ObjectKey, owner: Mapping[str, Any], desired: Mapping[str, Any]) -> None:
        """Record a successful write."""
        reverts = self._of(key, owner)
        if reverts is None or not (
            reverts.desired is None or _same_but_resends(reverts.desired, desired)
        ):
            self._reverts[key] = _Reverts(_trigger(owner), desired)
        else:
            reverts.desired = desired

    def count(self, key: ObjectKey, owner: Mapping[str, Any]) -> int:
        """Count one more revert. Returns the number so far."""
        now = asyncio.get_running_loop().time()
        reverts = self._of(key, owner)
        if reverts is None:
            reverts = self._reverts[key] = _Reverts(_trigger(owner))
        reverts.rounds = reverts.rounds + 1 if now - reverts.last < REVERT_WINDOW else 1
        reverts.last = now
        return reverts.rounds

    def forget(self, key: ObjectKey) -> None:
        """The AutoWasm is gone."""
        self._reverts.pop(key, None)
        self._resends.pop(key, None)

    def forget_all(self) -> None:
        """Another replica leads now: this one does not see its writes."""
        self._reverts.clear()
        self._resends.clear()

    def _of(self, key: ObjectKey, owner: Mapping[str, Any]) -> _Reverts | None:
        reverts = self._reverts.get(key)
        return reverts if reverts is not None and reverts.trigger == _trigger(owner) else None

    def _is_known(
        self, key: ObjectKey, owner: Mapping[str, Any], desired: Mapping[str, Any]
    ) -> bool:
        known = self._resends.get(key)
        return known is not None and known.about == _about(owner, desired)

    def _highest(
        self, key: ObjectKey, owner: Mapping[str, Any], desired: Mapping[str, Any]
    ) -> _Highest:
        if not self._is_known(key, owner, desired):
            self._resends[key] = _Highest(_about(owner, desired))
        return self._resends[key]


def _about(owner: Mapping[str, Any], desired: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key of a count: a new try requested by the user and another module each start a new count."""
    return (*_trigger(owner), *envoyfilters.digests_of(desired))


def _trigger(owner: Mapping[str, Any]) -> tuple[Any, ...]:
    metadata = owner["metadata"]
    annotations = metadata.get("annotations") or {}
    return metadata.get("uid"), metadata.get("generation"), annotations.get(REFRESH_ANNOTATION)


def _resends(envoyfilter: Mapping[str, Any], desired: Mapping[str, Any]) -> int:
    return max(
        (
            envoyfilters.resend_count_of(envoyfilter, one)
            for one in envoyfilters.digests_of(desired)
        ),
        default=0,
    )


def _same_but_resends(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one == other or _without_resends(one) == _without_resends(other)


def _without_resends(envoyfilter: Mapping[str, Any]) -> bytes:
    return _RESENDS.sub(b'"', msgspec.json.encode(envoyfilter, order="sorted"))
