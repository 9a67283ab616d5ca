"""ClusterPublisher: EnvoyFilters and statuses through the API server. Design D10.

Not the decision what to write (`reconciler.py`) nor whose an object is (`ownership.py`). Invariants: every write carries
the resourceVersion that was read, or is a create; only who leads writes; a foreign EnvoyFilter is never written; an object
that is being deleted is never written; nothing is written that would change nothing.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from autowasm.api.v1alpha1 import GROUP, KIND
from autowasm.controller.interfaces import Announce, announce_nothing
from autowasm.controller.overlay import WriteOverlay
from autowasm.controller.ownership import Ownership, ownership, replacement
from autowasm.errors import AutoWasmError, SpecError
from autowasm.kube import writes
from autowasm.kube.client import KubeClient
from autowasm.kube.controller import TerminalError
from autowasm.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound
from autowasm.kube.leadership import AlwaysLeading, Leadership, NotLeading
from autowasm.kube.resources import ObjectKey, ResourceType

_log = structlog.get_logger(__name__)

AUTOWASMS = ResourceType(GROUP, "v1alpha1", "autowasms", KIND)
ENVOYFILTERS = ResourceType("networking.istio.io", "v1alpha3", "envoyfilters", "EnvoyFilter")

PUT_BACK_MOST: Final = 3
"""After so many times that something rewrote the same EnvoyFilter we stop: two controllers in a fight drain every
connection of every sidecar, again and again."""
FIGHT_PAUSE: Final = 3600.0
"""Seconds. An edit so long after the last one is no fight but a person; a fight that we left stays left."""


@dataclass(slots=True)
class _Fight:
    wanted: Mapping[str, Any]
    """What we wrote last."""
    rounds: int = 0
    last: float = 0.0

    def count(self, now: float) -> None:
        """It was put back once more."""
        self.rounds = self.rounds + 1 if now - self.last < FIGHT_PAUSE else 1
        self.last = now


class ClusterPublisher:
    """`autowasms` and `envoyfilters` are the informers' stores with our own writes over them."""

    def __init__(
        self,
        client: KubeClient,
        *,
        autowasms: WriteOverlay,
        envoyfilters: WriteOverlay,
        announce: Announce = announce_nothing,
        leadership: Leadership | None = None,
    ) -> None:
        self._announce = announce
        self._leadership = leadership or AlwaysLeading()
        self._client = client
        self._autowasms = autowasms
        self._envoyfilters = envoyfilters
        self._fights: dict[ObjectKey, _Fight] = {}

    def published(self, key: ObjectKey) -> Mapping[str, Any] | None:
        """The EnvoyFilter of this name, if it is ours: by owner, or of an earlier AutoWasm of this name."""
        live, owner = self._envoyfilters.get(key), self._autowasms.get(key)
        if live is None or owner is None:
            return None
        ours = ownership(live, owner=owner) in {Ownership.OURS, Ownership.EARLIER}
        return live if ours else None

    async def publish(
        self, key: ObjectKey, owner: Mapping[str, Any], envoyfilter: Mapping[str, Any]
    ) -> bool:
        """Create it, or replace what differs. True if something was written.

        Raises SpecError (`EnvoyFilterConflict`), AutoWasmError (`Mutated`), ApiError.
        """
        live = self._envoyfilters.get(key)
        try:
            if live is None:
                return await self._create(key, owner, envoyfilter)
            return await self._replace(key, owner, live, envoyfilter)
        except Conflict:
            self._envoyfilters.forget(key)
            raise
        except NotFound:
            self._envoyfilters.forget(key)
            raise
        except Forbidden as error:
            if error.namespace_terminating:
                raise TerminalError(f"namespace {key.namespace} is being deleted") from error
            raise

    def _fence(self) -> None:
        """Right before a write: a process that was frozen may have lost the Lease without having heard of it."""
        if not self._leadership.is_leading:
            raise NotLeading("another replica leads")

    async def _create(
        self, key: ObjectKey, owner: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> bool:
        self._fence()
        try:
            written = await writes.create(self._client, ENVOYFILTERS, wanted)
        except AlreadyExists:
            # Whatever the informer shows: it follows only what carries our label.
            live = await self._client.get(ENVOYFILTERS, key)
            return await self._replace(key, owner, live, wanted)
        self._wrote(key, written, wanted)
        return True

    async def _replace(
        self,
        key: ObjectKey,
        owner: Mapping[str, Any],
        live: Mapping[str, Any],
        wanted: Mapping[str, Any],
    ) -> bool:
        whose = ownership(live, owner=owner)
        if whose is Ownership.FOREIGN:
            raise SpecError(
                "metadata.name",
                f"there is an EnvoyFilter {key} that is not ours; it is left as it is: delete it, rename the "
                f'AutoWasm, or hand it over with the annotation wasm.tcm.io/adopt: "true"',
                reason="EnvoyFilterConflict",
            )
        body = replacement(live, wanted)
        if body is None or writes.is_terminating(live):
            return False
        fight = self._fight(key, wanted)
        if whose is not Ownership.OURS:
            _log.info("envoyfilter adopted", key=str(key), was=whose.value)
        self._fence()
        written = await writes.replace(self._client, ENVOYFILTERS, body, read=live)
        if written is None:
            return False
        self._wrote(key, written, wanted)
        if fight is not None:
            fight.count(asyncio.get_running_loop().time())
            _log.warning("envoyfilter put back", key=str(key), times=fight.rounds)
            message = "somebody changed the EnvoyFilter; it is put back as it should be"
            self._announce(owner, "Warning", "PutBack", message)
        return True

    def _wrote(self, key: ObjectKey, written: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        self._envoyfilters.wrote(key, written)
        fight = self._fights.get(key)
        if fight is None or fight.wanted != wanted:
            self._fights[key] = _Fight(wanted)

    def _fight(self, key: ObjectKey, wanted: Mapping[str, Any]) -> _Fight | None:
        """The account of rewrites, if this very object was written by us before. Raises AutoWasmError (`Mutated`)."""
        fight = self._fights.get(key)
        if fight is None or fight.wanted != wanted:
            return None
        if fight.rounds >= PUT_BACK_MOST:
            raise AutoWasmError(
                f"something rewrites the EnvoyFilter {key} each time that it is put back; it was put back "
                f"{fight.rounds} times and is left as it is now: find out who writes it "
                "(kubectl get envoyfilter -o yaml --show-managed-fields), then change the AutoWasm",
                reason="Mutated",
            )
        return fight

    async def retract(self, key: ObjectKey) -> None:
        """Nothing to write: the garbage collector follows the owner reference, even while we are down."""
        self._fights.pop(key, None)
        self._envoyfilters.forget(key)
        self._autowasms.forget(key)

    async def write_status(
        self, key: ObjectKey, document: Mapping[str, Any], status: Mapping[str, Any]
    ) -> bool:
        """PUT of the status subresource. False if nothing differs, or the object is gone."""
        if document.get("status") == status:
            return False
        self._fence()
        try:
            written = await writes.replace_status(self._client, AUTOWASMS, status, read=document)
        except NotFound:
            self._autowasms.forget(key)
            return False
        except Conflict:
            self._autowasms.forget(key)
            raise
        if written is None:
            return False
        self._autowasms.wrote(key, written)
        return True
