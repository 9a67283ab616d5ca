"""ClusterPublisher: writes EnvoyFilters and statuses through the API server. ADR 12.

`controller/reconciler.py` decides what to write, and `ownership.py` decides who owns an object. Invariants: every write carries the
resourceVersion that was read, or is a create; only the leader writes; a foreign EnvoyFilter or an object that is being deleted is never
written; nothing is written without a change.
"""

from collections.abc import Mapping
from typing import Any

import structlog

from autowasm.api.envoyfilter import MANAGED_BY
from autowasm.api.v1alpha1 import GROUP, KIND
from autowasm.controller.interfaces import RecordEvent, record_no_event
from autowasm.controller.mutationcache import MutationCache
from autowasm.controller.ownership import Ownership, is_labelled, ownership, replacement
from autowasm.controller.revertlimiter import RevertLimiter
from autowasm.errors import AutoWasmError, SpecError
from autowasm.kube import writes
from autowasm.kube.client import KubeClient
from autowasm.kube.controller import TerminalError
from autowasm.kube.errors import (
    AlreadyExists,
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
)
from autowasm.kube.leaderelection import AlwaysLeading, Leadership, NotLeading
from autowasm.kube.resources import ObjectKey, ResourceType
from autowasm.reasons import Reason

_log = structlog.get_logger(__name__)

AUTOWASMS = ResourceType(GROUP, "v1alpha1", "autowasms", KIND)
ENVOYFILTERS = ResourceType("networking.istio.io", "v1alpha3", "envoyfilters", "EnvoyFilter")

_ETCD_TOO_LARGE = "etcdserver: request is too large"
"""The API server passes it on with status 500 (`ErrRequestTooLarge`, go.etcd.io/etcd api/v3rpc/rpctypes)."""
_OURS = {Ownership.OURS, Ownership.EARLIER, Ownership.ORPHANED}


class ClusterPublisher:
    """`autowasms` and `envoyfilters` are the informers' stores with our own writes on top."""

    def __init__(
        self,
        client: KubeClient,
        *,
        autowasms: MutationCache,
        envoyfilters: MutationCache,
        record_event: RecordEvent = record_no_event,
        leadership: Leadership | None = None,
    ) -> None:
        self._record_event = record_event
        self._leadership = leadership or AlwaysLeading()
        self._client = client
        self._autowasms = autowasms
        self._envoyfilters = envoyfilters
        self._revert_limiter = RevertLimiter()

    def published(self, key: ObjectKey) -> Mapping[str, Any] | None:
        """The EnvoyFilter of this name if it is ours: by its owner, or from an earlier AutoWasm of this name."""
        live, owner = self._envoyfilters.get(key), self._autowasms.get(key)
        if live is None or owner is None:
            return None
        return live if ownership(live, owner=owner) in _OURS else None

    def left_behind(self, key: ObjectKey) -> Mapping[str, Any] | None:
        """Our EnvoyFilter whose AutoWasm is gone. It exists for a moment, or permanently if it was orphaned."""
        live = self._envoyfilters.get(key)
        if live is None:
            return None
        no_owner = {"metadata": {"name": key.name}}
        return live if ownership(live, owner=no_owner) in _OURS else None

    async def find(self, key: ObjectKey, owner: Mapping[str, Any]) -> None:
        """GET the EnvoyFilter, because the informer does not see one without our label. Restores the label.

        `published` then returns it. Raises AutoWasmError (`Mutated`), ApiError.
        """
        with self._envoyfilters.in_flight(key):
            await self._find(key, owner)

    async def _find(self, key: ObjectKey, owner: Mapping[str, Any]) -> None:
        try:
            live = await self._client.get(ENVOYFILTERS, key)
        except NotFound:
            return
        if ownership(live, owner=owner) is not Ownership.OURS or writes.is_terminating(live):
            return
        if is_labelled(live):
            self._envoyfilters.wrote(key, live)  # the informer lags behind
            return
        self._revert_limiter.check(key, owner)
        body = replacement(
            live, {"metadata": {**live["metadata"], "labels": MANAGED_BY}, "spec": live["spec"]}
        )
        self._fence()
        written = await writes.update(self._client, ENVOYFILTERS, body or live, read=live)
        if written is not None:
            self._envoyfilters.wrote(key, written)
            self._reverted(
                key, owner, "another client removed wasmer's label from the EnvoyFilter; restored"
            )

    async def publish(
        self, key: ObjectKey, owner: Mapping[str, Any], envoyfilter: Mapping[str, Any]
    ) -> bool:
        """Create the EnvoyFilter, or replace it if it differs. True if something was written.

        Raises SpecError (`EnvoyFilterConflict`), AutoWasmError (`Mutated`, `EnvoyFilterRefused`), ApiError.
        """
        live = self._envoyfilters.get(key)
        try:
            with self._envoyfilters.in_flight(key):
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
            raise _refused(key, error) from error
        except (BadRequest, Invalid) as error:
            raise _refused(key, error) from error
        except ApiError as error:
            if _ETCD_TOO_LARGE in str(error):
                raise _refused(key, error) from error
            raise

    def _fence(self) -> None:
        """Check leadership right before a write: a process that was frozen may have lost the Lease unnoticed."""
        if not self._leadership.is_leading:
            raise NotLeading("another replica leads")

    async def _create(
        self, key: ObjectKey, owner: Mapping[str, Any], desired: Mapping[str, Any]
    ) -> bool:
        again = self._revert_limiter.is_revert(key, owner, desired)
        self._fence()
        try:
            written = await writes.create(self._client, ENVOYFILTERS, desired)
        except AlreadyExists:
            # The informer only sees objects with our label.
            live = await self._client.get(ENVOYFILTERS, key)
            return await self._replace(key, owner, live, desired)
        self._wrote(key, owner, written, desired)
        if again:
            self._reverted(key, owner, "another client deleted the EnvoyFilter; created again")
        return True

    async def _replace(
        self,
        key: ObjectKey,
        owner: Mapping[str, Any],
        live: Mapping[str, Any],
        desired: Mapping[str, Any],
    ) -> bool:
        whose = ownership(live, owner=owner)
        if whose is Ownership.FOREIGN:
            raise SpecError(
                "metadata.name",
                f"EnvoyFilter {key} exists and is not managed by wasmer, so it stays unchanged: delete it, rename the "
                f'AutoWasm, or let wasmer adopt it with the annotation wasm.tcm.io/adopt: "true"',
                reason=Reason.ENVOY_FILTER_CONFLICT,
            )
        if writes.is_terminating(live):
            raise _terminating(key, live)
        body = replacement(live, desired)
        if body is None:
            if self._revert_limiter.in_place(key, owner, desired):
                times = self._revert_limiter.count(key, owner)
                _log.warning(
                    "envoyfilter resend count raised by another client", key=str(key), times=times
                )
                message = "another client raised the resend count (?r=) in the EnvoyFilter, which drains all of its sidecars"
                self._record_event(owner, "Warning", "Mutated", message)
            return False
        again = self._revert_limiter.is_revert(key, owner, desired, live=live)
        if whose is not Ownership.OURS:
            _log.info("envoyfilter adopted", key=str(key), was=whose.value)
        self._fence()
        written = await writes.update(self._client, ENVOYFILTERS, body, read=live)
        if written is None:
            raise _terminating(key, live)
        self._wrote(key, owner, written, desired)
        if again:
            message = "another client changed the EnvoyFilter; reverted"
            self._reverted(key, owner, message)
        return True

    def _wrote(
        self,
        key: ObjectKey,
        owner: Mapping[str, Any],
        written: Mapping[str, Any],
        desired: Mapping[str, Any],
    ) -> None:
        self._envoyfilters.wrote(key, written)
        self._revert_limiter.wrote(key, owner, desired)

    def _reverted(self, key: ObjectKey, owner: Mapping[str, Any], message: str) -> None:
        times = self._revert_limiter.count(key, owner)
        _log.warning("envoyfilter reverted", key=str(key), times=times)
        self._record_event(owner, "Warning", "Reverted", message)

    def resigned(self) -> None:
        """See Publisher."""
        self._revert_limiter.forget_all()

    async def retract(self, key: ObjectKey) -> None:
        """Writes nothing: the garbage collector deletes the EnvoyFilter by its owner reference, even while wasmer is down."""
        self.forget(key)

    def forget(self, key: ObjectKey) -> None:
        """See Publisher."""
        self._revert_limiter.forget(key)
        self._envoyfilters.forget(key)
        self._autowasms.forget(key)

    async def write_status(
        self, key: ObjectKey, document: Mapping[str, Any], status: Mapping[str, Any]
    ) -> bool:
        """PUT the status subresource. False if nothing differs, or the object is gone."""
        if document.get("status") == status:
            return False
        self._fence()
        with self._autowasms.in_flight(key, read=document):
            try:
                written = await writes.update_status(self._client, AUTOWASMS, status, read=document)
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


def _refused(key: ObjectKey, error: ApiError) -> AutoWasmError:
    return AutoWasmError(
        f"the API server refuses the EnvoyFilter {key}: {error}", reason=Reason.ENVOY_FILTER_REFUSED
    )


def _terminating(key: ObjectKey, live: Mapping[str, Any]) -> AutoWasmError:
    held_by = ", ".join((live.get("metadata") or {}).get("finalizers") or []) or "none"
    return AutoWasmError(
        f"EnvoyFilter {key} is being deleted (finalizers: {held_by}); wasmer creates it again after the deletion",
        reason=Reason.ENVOY_FILTER_TERMINATING,
    )
