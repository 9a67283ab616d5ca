"""The interfaces between the reconciler and its mode: the source of AutoWasm objects, and the destination of results.

In cluster mode these are informers and API writes, in standalone mode a directory and files; the reconciler is the same.
Invariant: `published` and `Lookup.document` return the objects that were read back, never the ones that we intended to write.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from autowasm.artifacts.pullsecrets import SecretReader
from autowasm.digest import Sha256Hex
from autowasm.errors import SpecError
from autowasm.kube.resources import ObjectKey


class RecordEvent(Protocol):
    """Records an Event about an object. Never waits, never fails (`kube.recorder.EventRecorder.event`)."""

    def __call__(
        self,
        about: Mapping[str, Any],
        kind: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        /,
    ) -> None:
        """`reason` in CamelCase, `message` a sentence."""


def record_no_event(
    about: Mapping[str, Any], kind: Literal["Normal", "Warning"], reason: str, message: str, /
) -> None:
    """For modes without Events: the log has the same text."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """One current AutoWasm with its `status`; `problem` if something outside the object is wrong."""

    document: Mapping[str, Any]
    problem: SpecError | None = None


class AutoWasmLookup(Protocol):
    """The source of AutoWasm objects."""

    def lookup(self, key: ObjectKey) -> Lookup | None:
        """The object, or None."""


class Publisher(Protocol):
    """Writes EnvoyFilters and statuses. Both writes do nothing if nothing would change."""

    def published(self, key: ObjectKey) -> Mapping[str, Any] | None:
        """Our EnvoyFilter in place, or None."""

    def left_behind(self, key: ObjectKey) -> Mapping[str, Any] | None:
        """Our EnvoyFilter whose AutoWasm is gone, if it still exists."""

    async def find(self, key: ObjectKey, owner: Mapping[str, Any]) -> None:
        """Search for an EnvoyFilter that was in place and is no longer visible; if it exists, `published` returns it."""

    async def publish(
        self, key: ObjectKey, owner: Mapping[str, Any], envoyfilter: Mapping[str, Any]
    ) -> bool:
        """Write the EnvoyFilter. True if that changed something.

        Raises SpecError (`EnvoyFilterConflict`) if a foreign EnvoyFilter has the name.
        """

    async def retract(self, key: ObjectKey) -> None:
        """The AutoWasm is gone: remove its EnvoyFilter and status."""

    def forget(self, key: ObjectKey) -> None:
        """The AutoWasm is gone and another replica leads: drop its state."""

    def resigned(self) -> None:
        """Another replica leads from now on: drop the revert counts. Does not wait."""

    async def write_status(
        self, key: ObjectKey, document: Mapping[str, Any], status: Mapping[str, Any]
    ) -> bool:
        """Write the status of the object. True if that changed something."""


class Replicas(Protocol):
    """The other replicas (`artifacts/peers.py`)."""

    def known(self) -> tuple[str, ...]:
        """Their current addresses; empty: there is no other replica."""

    async def wait_all_have(self, sha256: Sha256Hex, timeout: float) -> bool:
        """True when all ready replicas have the module, False after `timeout` seconds. Raises nothing."""


class Mode(AutoWasmLookup, SecretReader, Protocol):
    """The source of objects and Secrets, and the target of results: a cluster or a directory."""

    @property
    def publisher(self) -> Publisher:
        """The writer of EnvoyFilters and statuses."""

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Return after everything was read once. Raises UsageError."""

    def keys(self) -> frozenset[ObjectKey]:
        """All keys to reconcile once at the start."""

    async def run(
        self, *, changed: Callable[[ObjectKey], None], secret_changed: Callable[[ObjectKey], None]
    ) -> None:
        """Report changes, forever."""
