"""ArtifactFetcher: resolve ▶ fetch ▶ verify ▶ store.

Retries are in the work queue, and no worker waits for a fetch (`controller/fetchjobs.py`). Invariants: a module in the store
has passed every check of ADR 5; a module that one credential may read is given to another only after that one has
resolved it (ADR 19); credentials do not share failures; rejected bytes are not fetched again; the expected digest is
checked for each request, never for a flight that several requests share.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog
from cachetools import FIFOCache

from autowasm.api.record import Record, belongs_to
from autowasm.artifacts.fetchlimiter import CircuitBreakers, FetchLimiter
from autowasm.artifacts.peers import Peers, hedged
from autowasm.artifacts.pullsecrets import (
    PullAccess,
    PullAccessReader,
    SecretReader,
    ServiceAccounts,
    explain_denied,
)
from autowasm.artifacts.singleflight import SingleFlight
from autowasm.artifacts.source import FetchRequest, ModuleSource, Pinned, SourceKey
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, ContentRejected, SourceDenied, SourceNotFound
from autowasm.net.pools import Pools
from autowasm.reasons import Reason
from autowasm.registry.credentials import Credential
from autowasm.settings import Settings
from autowasm.telemetry.metrics import Metrics, exemplar_of
from autowasm.wasm.module import ModuleInfo, inspect_module

DAMAGED_ON_THE_WAY: Final = frozenset({Reason.DIGEST_MISMATCH, Reason.SIZE_MISMATCH})
"""Reasons that do not concern the content itself: the next attempt may receive the right bytes."""
_MAX_KEPT: Final = 10_000
"""Contents, and digests, that are remembered; the oldest is forgotten first, which costs a download or a check."""


@dataclass(frozen=True, slots=True)
class FetchedModule:
    """Facts about bytes that are, or were, in the store."""

    sha256: Sha256Hex
    size: int
    abi: str


@dataclass(frozen=True, slots=True)
class FetchAttempt:
    """One call of `fetch`, with the values that every step needs."""

    request: FetchRequest
    source: ModuleSource
    access: PullAccess
    key: SourceKey

    @property
    def credential(self) -> Credential | None:
        """The credential that is sent to the source."""
        return self.access.credential

    def record(self, pinned: Pinned, module: FetchedModule) -> Record:
        """The record that the request resolved to."""
        return pinned.record(
            self.request.source,
            sha256=module.sha256,
            size=module.size,
            abi=module.abi,
            secret_uid=self.access.secret_uid,
        )


def check_promised(request: FetchRequest, module: FetchedModule) -> None:
    """Raises ContentRejected (`DigestMismatch`, `Sha256Mismatch`) if the module lacks the digest of the record or the spec."""
    record = request.record
    if record is not None and record.sha256 != module.sha256:
        raise ContentRejected(
            f"{record.origin} had sha256:{record.sha256} when it was published and has "
            f"sha256:{module.sha256} now",
            reason=Reason.DIGEST_MISMATCH,
        )
    if request.expected is not None and request.expected != module.sha256:
        raise ContentRejected(
            f"spec.filter.sha256: the module has sha256 {module.sha256}, not {request.expected}; "
            "it is not used",
            reason=Reason.SHA256_MISMATCH,
        )


T = TypeVar("T")
_log = structlog.get_logger(__name__)


class ArtifactFetcher:
    """Fetches modules into `store`. The keys of `sources` are the fields of `spec.filter.source`."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: BlobStore,
        sources: Mapping[str, ModuleSource],
        secrets: SecretReader,
        pools: Pools,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
        service_accounts: ServiceAccounts | None = None,
        object_hosts: Callable[[str], tuple[str, ...] | None] = lambda _: None,
        peers: Peers | None = None,
    ) -> None:
        """`object_hosts`: the hosts that a namespace's policy allows for objects and their redirects; None allows any."""
        self._settings = settings
        self._store = store
        self._peers = peers
        self._sources = sources
        self._access = PullAccessReader(secrets, service_accounts)
        self._object_hosts = object_hosts
        self._pools = pools
        self._metrics = metrics
        self._single_flight = SingleFlight(tasks)
        self._fetch_limiter = FetchLimiter(settings.fetch, metrics=metrics)
        self._breakers = CircuitBreakers(settings.fetch, metrics=metrics)
        self._modules: FIFOCache[str, FetchedModule] = FIFOCache(_MAX_KEPT)  # by content key
        self._inspected: FIFOCache[Sha256Hex, FetchedModule] = FIFOCache(_MAX_KEPT)
        self._refused: FIFOCache[str, ContentRejected] = FIFOCache(_MAX_KEPT)  # by content key

    async def fetch(self, request: FetchRequest) -> Record:
        """Bring the module into the store and return its record. If the request has a record, a peer may provide the module.

        Raises AutoWasmError for every expected failure; its class decides the retry.
        """
        fetch, record = partial(self.fetch_at_source, request), request.record
        if record is None or self._peers is None or record.sha256 in self._store:
            return await fetch()
        return await hedged(self._peers.copy(record.sha256), fetch) or await fetch()

    async def fetch_at_source(self, request: FetchRequest) -> Record:
        """As `fetch`, without peers."""
        kind = "registry" if request.source.registry else "object"
        try:
            record = await self._fetch(request, self._sources[kind])
        except AutoWasmError as error:
            self._metrics.fetches.labels(kind, error.reason).inc()
            raise
        self._metrics.fetches.labels(kind, "Success").inc()
        return record

    async def _fetch(self, request: FetchRequest, source: ModuleSource) -> Record:
        record = request.record
        if record is not None and record.sha256 in self._store:
            size = self._store.size(record.sha256)
            async with self._store.admission.reserve(
                request.namespace, owner=request.owner, sha256=record.sha256, size=size
            ) as reservation:
                reservation.hold(record.sha256, size)
            return record
        attempt = await self._attempt(request)
        with self._explained(attempt):
            pinned = await self._pin(attempt)
            sha256 = record.sha256 if record is not None else pinned.sha256
            # Outside the flight: each request that shares it has its own quota.
            async with self._store.admission.reserve(
                request.namespace, owner=request.owner, sha256=sha256, size=pinned.size
            ) as reservation:
                pinned, module = await self._obtain(attempt, pinned)
                reservation.hold(module.sha256, module.size)
        self._breakers.succeeded(attempt.key)
        check_promised(request, module)
        return record if record is not None else attempt.record(pinned, module)

    async def access(self, request: FetchRequest) -> PullAccess:
        """The credential that the request's Secret contains now. Raises the errors of `fetch`; sends no request to the source."""
        return await self._access.read(request)

    async def has_moved(self, request: FetchRequest, known: Record) -> bool | None:
        """Whether the source names content other than `known`; None if only a fetch can find out. Raises the errors of `fetch`."""
        attempt = await self._attempt(request)
        source, credential = attempt.source, attempt.credential
        check = partial(source.has_moved, request.source, known, credential=credential)
        with self._explained(attempt):
            moved = await self._single_flight.join(
                ("check", str(request.source), known.origin, attempt.key.credential),
                partial(self._counted, attempt, "check", check),
                slot=self._slot(attempt),
            )
        if moved is not None:
            self._breakers.succeeded(attempt.key)
        return moved

    async def prove(self, request: FetchRequest) -> None:
        """Raises an error of `fetch` unless the request's own credential may read the content of its record. Downloads nothing."""
        attempt = await self._attempt(request)
        with self._explained(attempt):
            await self._pin(attempt)
        if (
            request.source.registry is not None
        ):  # an object's URL is its record: no request was sent
            self._breakers.succeeded(attempt.key)

    @contextmanager
    def _explained(self, attempt: FetchAttempt) -> Iterator[None]:
        try:
            yield
        except (SourceDenied, SourceNotFound) as error:
            raise explain_denied(attempt.request, attempt.access, error) from error

    async def _attempt(self, request: FetchRequest) -> FetchAttempt:
        source = self._sources["registry" if request.source.registry else "object"]
        access = await self._access.read(request)
        return FetchAttempt(request, source, access, source.key(request.source, access.credential))

    async def _pin(self, attempt: FetchAttempt) -> Pinned:
        """Resolve the record, or the source if there is none. This also proves that the credential may read it."""
        request, record = attempt.request, attempt.request.record
        if record is None:
            resolve = partial(attempt.source.resolve, request.source, credential=attempt.credential)
        else:
            resolve = partial(attempt.source.pin, record, credential=attempt.credential)
        named = record.origin if record is not None else ""
        pinned = await self._single_flight.join(
            ("resolve", str(request.source), named, attempt.key.credential),
            partial(self._counted, attempt, "resolve", resolve),
            slot=self._slot(attempt),
        )
        return self._with_rules(request, pinned)

    def _with_rules(self, request: FetchRequest, pinned: Pinned) -> Pinned:
        """For an object, add the hosts of the namespace's policy and, if its module is stored, the record for a conditional GET."""
        if not pinned.url:
            return pinned
        known = request.known if request.record is None else None
        usable = (
            known is not None
            and known.sha256 in self._store
            and belongs_to(known, str(request.source))
        )
        return replace(
            pinned, hosts=self._object_hosts(request.namespace), handle=known if usable else None
        )

    async def _obtain(self, attempt: FetchAttempt, pinned: Pinned) -> tuple[Pinned, FetchedModule]:
        """The module behind `pinned`: from the store, or fetched once for all requests that wait for it."""
        stored = await self._stored(pinned)
        if stored is not None:
            return pinned, stored
        return await self._single_flight.join(
            (
                "fetch",
                pinned.content_key or str(attempt.request.source),
                pinned.hosts,
                attempt.key.credential,
            ),
            partial(self._counted, attempt, "fetch", partial(self._fetch_now, attempt, pinned)),
            slot=self._slot(attempt),
        )

    async def _stored(self, pinned: Pinned) -> FetchedModule | None:
        """The module behind `pinned` if it is in the store. Raises ContentRejected if it was rejected before."""
        content = pinned.content_key
        if content in self._refused:
            refused = self._refused[content]
            raise ContentRejected(str(refused), reason=refused.reason)
        if (known := self._modules.get(content)) is not None and known.sha256 in self._store:
            return known
        if pinned.sha256 is None or pinned.sha256 not in self._store:
            return None
        module = await self._inspect_stored(pinned.sha256)
        self._modules[content] = module
        return module

    def _slot(self, attempt: FetchAttempt) -> Callable[[], AbstractAsyncContextManager[None]]:
        return partial(self._fetch_limiter.slot, attempt.request.namespace, attempt.key.host)

    async def _counted(
        self, attempt: FetchAttempt, stage: str, work: Callable[[], Awaitable[T]]
    ) -> T:
        """Run a step that sends requests to the source, under its circuit breaker."""
        self._breakers.check(attempt.key)
        try:
            with self._timed(attempt, stage):
                return await work()
        except AutoWasmError as error:
            self._breakers.failed(attempt.key, error)
            raise

    async def _fetch_now(
        self, attempt: FetchAttempt, pinned: Pinned
    ) -> tuple[Pinned, FetchedModule]:
        # While we waited for a slot, a fetch with another credential may have stored it.
        if (stored := await self._stored(pinned)) is not None:
            return pinned, stored
        try:
            fetched, module = await self._download(attempt, pinned)
        except ContentRejected as error:
            if pinned.content_key and error.reason not in DAMAGED_ON_THE_WAY:
                verdict = ContentRejected(str(error), reason=error.reason)  # without the traceback
                self._refused[pinned.content_key] = verdict
            raise
        if fetched.content_key:
            self._modules[fetched.content_key] = module
        _log.info(
            "module stored",
            digest=module.sha256,
            size=module.size,
            abi=module.abi,
            source=fetched.image or attempt.key.host,
        )
        return fetched, module

    async def _download(
        self, attempt: FetchAttempt, pinned: Pinned
    ) -> tuple[Pinned, FetchedModule]:
        """Stage ▶ verify ▶ store. A module enters the store only after every check has passed."""
        source = attempt.source
        received = self._metrics.fetched_bytes.labels(source.kind)
        async with self._store.admission.reserve_space(pinned.size), self._store.stage() as stage:
            with self._timed(attempt, "download"):
                get = partial(
                    source.fetch,
                    destination=stage.path,
                    workdir=stage.path.parent,
                    credential=attempt.credential,
                    on_bytes=received.inc,
                )
                fetched = await get(pinned)
                if fetched.unchanged and fetched.sha256 and fetched.sha256 in self._store:
                    return fetched, await self._inspect_stored(fetched.sha256)
                if fetched.unchanged:  # evicted since the request
                    fetched = await get(replace(pinned, handle=None))
            # Runs during the check.
            settling = self._store.settle(stage, fetched.sha256, hashed=fetched.file)
            try:
                with self._timed(attempt, "verify"):
                    info = await self._inspect(stage.path)
                with self._timed(attempt, "store"):
                    settled = await settling
                    await self._store.commit(stage, settled.sha256, settled=settled)
            finally:
                if not settling.cancel() and not settling.cancelled():
                    settling.exception()  # retrieved: the error of the check is raised
        found = replace(fetched, sha256=settled.sha256, file=None)
        return found, self._remember(settled.sha256, info)

    async def _inspect_stored(self, sha256: Sha256Hex) -> FetchedModule:
        """A stored module was checked before it was stored, so this only reads it again."""
        if (known := self._inspected.get(sha256)) is not None:
            return known
        # Many objects that name one image arrive here at once, when it has been resolved for them all.
        return await self._single_flight.join(
            ("inspect", sha256), partial(self._inspect_once, sha256), slot=nullcontext
        )

    async def _inspect_once(self, sha256: Sha256Hex) -> FetchedModule:
        return self._remember(sha256, await self._inspect(self._store.path(sha256)))

    async def _inspect(self, path: Path) -> ModuleInfo:
        info = await self._pools.parsing.run(
            inspect_module,
            path,
            limits=self._settings.limits,
            allow_imports=self._settings.allow_imports,
            envoy=self._settings.oldest_envoy,
        )
        if info.unchecked:
            _log.warning("module not fully checked", file=path.name, unchecked=info.unchecked)
        return info

    def _remember(self, sha256: Sha256Hex, info: ModuleInfo) -> FetchedModule:
        module = FetchedModule(sha256, info.size, info.abi)
        self._inspected[sha256] = module
        return module

    @contextmanager
    def _timed(self, attempt: FetchAttempt, stage: str) -> Iterator[None]:
        begin, outcome = time.perf_counter(), "error"
        try:
            yield
            outcome = "success"
        finally:
            timer = self._metrics.fetch_seconds.labels(attempt.source.kind, stage, outcome)
            timer.observe(time.perf_counter() - begin, exemplar_of(attempt.request.owner))
