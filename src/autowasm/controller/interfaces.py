"""The two seams of the reconciler: where AutoWasm objects come from, and where what it makes of them goes.

On Kubernetes these are informers and API writes, in standalone mode a directory and files; the reconciler between them
is the same. Not an abstraction of Kubernetes. Invariant: `published` and `Lookup.document` tell what is really there, as
read back, never what we meant to write.

Mode: where objects and Secrets come from, and where what is made of them goes. The seam of the composition root.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from autowasm.artifacts.pullsecrets import SecretReader
from autowasm.digest import Sha256Hex
from autowasm.errors import SpecError
from autowasm.kube.resources import ObjectKey


class Announce(Protocol):
    """Tells people who look at an object. Never waits, never fails (`kube.recorder.EventRecorder.event`)."""

    def __call__(
        self,
        about: Mapping[str, Any],
        kind: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        /,
    ) -> None:
        """`reason` in CamelCase, `message` a sentence."""


def announce_nothing(
    about: Mapping[str, Any], kind: Literal["Normal", "Warning"], reason: str, message: str, /
) -> None:
    """For where there are no Events: the log says it too."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """One AutoWasm as it is now, its `status` in it; `problem` if something outside the object is wrong with it."""

    document: Mapping[str, Any]
    problem: SpecError | None = None


class AutoWasmLookup(Protocol):
    """Where AutoWasm objects come from."""

    def lookup(self, key: ObjectKey) -> Lookup | None:
        """The object, None if there is none."""


class Publisher(Protocol):
    """Where EnvoyFilters and statuses go. Both writes do nothing if nothing would change."""

    def published(self, key: ObjectKey) -> Mapping[str, Any] | None:
        """The EnvoyFilter that is ours and in place; None if there is none."""

    def left_behind(self, key: ObjectKey) -> Mapping[str, Any] | None:
        """The EnvoyFilter of ours whose AutoWasm is gone, if it is still there."""

    async def find(self, key: ObjectKey, owner: Mapping[str, Any]) -> None:
        """Look for one that was in place and is not shown any more; `published` shows it if it is there after all."""

    async def publish(
        self, key: ObjectKey, owner: Mapping[str, Any], envoyfilter: Mapping[str, Any]
    ) -> bool:
        """Put the EnvoyFilter in place. True if that changed something.

        Raises SpecError (`EnvoyFilterConflict`) if one of this name is somebody else's.
        """

    async def retract(self, key: ObjectKey) -> None:
        """The AutoWasm is gone: its EnvoyFilter and status go too."""

    def forget(self, key: ObjectKey) -> None:
        """The AutoWasm is gone, and somebody else leads: keep nothing of it."""

    def resigned(self) -> None:
        """Another replica leads from now on: keep no count of what was put back. Does not wait."""

    async def write_status(
        self, key: ObjectKey, document: Mapping[str, Any], status: Mapping[str, Any]
    ) -> bool:
        """Write the status of the object. True if that changed something."""


class Replicas(Protocol):
    """The other replicas (`artifacts/peers.py`)."""

    def known(self) -> tuple[str, ...]:
        """Their addresses now; empty: we are alone."""

    async def wait_all_have(self, sha256: Sha256Hex, timeout: float) -> bool:
        """True once all that are ready have the module, False after `timeout` seconds. Raises nothing."""


class NoReplicas:
    """Alone."""

    def known(self) -> tuple[str, ...]:
        """Nobody."""
        return ()

    async def wait_all_have(self, sha256: Sha256Hex, timeout: float) -> bool:
        """All of nobody have it."""
        return True


class Mode(AutoWasmLookup, SecretReader, Protocol):
    """Where objects and Secrets come from, and where what is made of them goes: a cluster or a directory."""

    @property
    def publisher(self) -> Publisher:
        """Where EnvoyFilters and statuses go."""

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Return once everything that is there was read once. Raises UsageError."""

    def keys(self) -> frozenset[ObjectKey]:
        """All that has to be reconciled once at the start."""

    async def run(
        self, *, changed: Callable[[ObjectKey], None], secret_changed: Callable[[ObjectKey], None]
    ) -> None:
        """Tell of changes, for ever."""
