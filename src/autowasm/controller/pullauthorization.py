"""PullAuthorizer: decides whether an AutoWasm may use its module with its own Secret (ADR 19).

It resolves nothing: it only checks that the login may read the module that the record names. Invariants: a Secret is read
again every `secret_recheck` seconds and at each new record, never on the reconcile path; an unreachable API server or registry
changes no verdict about a published module; the registry is asked only if the record was not made with this very Secret, or
if the login in it has changed since.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.source import FetchRequest
from autowasm.controller.decision import ResolveSource, UseRecord
from autowasm.controller.reconcilecontext import ReconcileContext, fetch_request
from autowasm.errors import AutoWasmError, SourceUnavailable, StorageError
from autowasm.kube.resources import ObjectKey
from autowasm.limits import FetchLimits

_log = structlog.get_logger(__name__)

_CHECK_INTERVAL: Final = 1.0
"""Seconds between two searches for due checks."""
_JITTER: Final = 0.2
_AT_ONCE: Final = 16
"""Concurrent checks: after start-up, every AutoWasm with a Secret is due."""


@dataclass(slots=True, eq=False)
class _Authorization:
    request: FetchRequest
    due: float
    decided: bool = False
    error: AutoWasmError | None = None
    fingerprint: str = ""
    """Of the last authorized login."""
    running: bool = False
    published: bool = False
    answered: str | bool = False
    """The last verdict that the reconciler has read, an error as its text."""

    @property
    def verdict(self) -> AutoWasmError | bool:
        """See `PullAuthorizer.verdict`."""
        if self.published and not self.decided:
            return True
        return self.error if self.error is not None else self.decided


class PullAuthorizer:
    """Verdicts by object key. Calls `on_change` with the key when a verdict has changed."""

    def __init__(
        self,
        fetcher: ArtifactFetcher,
        *,
        limits: FetchLimits,
        on_change: Callable[[ObjectKey], None],
    ) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._on_change = on_change
        self._authorizations: dict[ObjectKey, _Authorization] = {}
        self._due = asyncio.Event()

    def verdict(
        self, key: ObjectKey, request: FetchRequest, *, published: bool
    ) -> AutoWasmError | bool:
        """True: the module of `request.record` is authorized. False: unknown yet. An error: why it is refused.

        A `published` module counts as authorized until it is refused.
        """
        record = request.record
        needs_none = request.secret is None and (record is None or not record.secret_uid)
        if request.source.registry is None or record is None or needs_none:
            self._authorizations.pop(key, None)
            return True
        authorization = self._authorizations.get(key)
        if authorization is None or authorization.request != request:
            authorization = self._authorizations[key] = _Authorization(request, self._now())
            if not published:  # nothing waits for the others, and checks that run together share reads of the Secret
                self._due.set()
        authorization.published = published
        verdict = authorization.verdict
        authorization.answered = _comparable(verdict)
        return verdict

    def published(self, key: ObjectKey, request: FetchRequest) -> None:
        """The module of `request.record` was published: its Secret is checked from now on."""
        self.verdict(key, request, published=True)

    def recheck(self, key: ObjectKey) -> None:
        """The Secret has changed."""
        authorization = self._authorizations.get(key)
        if authorization is not None:
            authorization.due = self._now()
            self._due.set()

    def forget(self, key: ObjectKey) -> None:
        """The object is being deleted or invalid, or another replica leads."""
        self._authorizations.pop(key, None)

    async def run(self) -> None:
        """Run due checks, forever."""
        places = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._due.clear()
                now = self._now()
                for key, authorization in list(self._authorizations.items()):
                    if authorization.due <= now and not authorization.running:
                        authorization.running = True
                        check = self._check(key, authorization, places)
                        tasks.create_task(check, name=f"pull authorization {key}")
                try:
                    async with asyncio.timeout(_CHECK_INTERVAL):
                        await self._due.wait()
                except TimeoutError:
                    continue

    async def _check(
        self, key: ObjectKey, authorization: _Authorization, places: asyncio.Semaphore
    ) -> None:
        begun = self._now()
        spread = 1.0 + _JITTER * random.random()  # noqa: S311 - spreads load, guards nothing
        try:
            async with places:
                if self._authorizations.get(key) is not authorization:
                    return
                await self._decide(key, authorization)
        except Exception as error:  # supervised edge: a bug fails one check, not the process
            _log.exception(
                "pull authorization failed unexpectedly", key=str(key), error=type(error).__name__
            )
        finally:
            authorization.running = False
            if authorization.due <= begun:
                authorization.due = self._now() + self._limits.secret_recheck * spread

    async def _decide(self, key: ObjectKey, authorization: _Authorization) -> None:
        before = (authorization.decided, authorization.error and str(authorization.error))
        try:
            authorization.fingerprint = await self._allowed(authorization)
            authorization.error = None
        except (SourceUnavailable, StorageError) as error:
            if authorization.decided:  # the verdict stays
                return
            authorization.error = error
            # Only for an unpublished module; it is checked again soon.
            authorization.due = self._now() + self._limits.retry_base * 10
        except AutoWasmError as error:
            authorization.error = error
        authorization.decided = not isinstance(
            authorization.error, SourceUnavailable | StorageError
        )
        after = (authorization.decided, authorization.error and str(authorization.error))
        if after != before and self._authorizations.get(key) is authorization:
            if authorization.error is not None:
                _log.warning(
                    "pull authorization failed", key=str(key), reason=authorization.error.reason
                )
            if _comparable(authorization.verdict) != authorization.answered:
                self._on_change(key)

    async def _allowed(self, authorization: _Authorization) -> str:
        """Returns the fingerprint of the login. Raises the refusal."""
        access = await self._fetcher.access(authorization.request)
        record = authorization.request.record
        made_with_it = record is not None and record.secret_uid in {"", access.secret_uid}
        unseen = not authorization.fingerprint and made_with_it
        if authorization.fingerprint != access.fingerprint and not unseen:
            await self._fetcher.prove(authorization.request)
        return access.fingerprint

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _comparable(verdict: AutoWasmError | bool) -> str | bool:
    return str(verdict) if isinstance(verdict, AutoWasmError) else verdict


def authorization_of(
    pull_authorizer: PullAuthorizer | None,
    context: ReconcileContext,
    autowasm: AutoWasm,
    decision: UseRecord | ResolveSource,
) -> AutoWasmError | bool:
    """`PullAuthorizer.verdict` for the chosen record. A new resolution needs none: the registry authorizes it."""
    if pull_authorizer is None or not isinstance(decision, UseRecord):
        return True
    record = decision.record
    request = fetch_request(autowasm, record=record)
    return pull_authorizer.verdict(context.key, request, published=record == context.live)
