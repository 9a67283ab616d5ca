"""ArtifactFetcher: resolve ▶ fetch ▶ verify ▶ store, for whoever needs a module.

Not a scheduler of retries (the work queue is) and not on anybody's reconcile path (`controller/jobs.py`). Invariants: a
module in the store has passed every check of design D5; what one credential may have is given to another only after that
one has resolved it itself (D11); one credential's failure is never another's; bytes that were refused once are not
fetched again.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from autowasm.api.record import Record
from autowasm.artifacts import pullsecrets
from autowasm.artifacts.breaker import Breakers
from autowasm.artifacts.flights import Flights
from autowasm.artifacts.places import Places
from autowasm.artifacts.pullsecrets import SecretReader
from autowasm.artifacts.source import FetchRequest, ModuleSource, Pinned, SourceKey
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, ContentRejected, SourceDenied
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.credentials import Credential
from autowasm.settings import Settings
from autowasm.telemetry.metrics import Metrics
from autowasm.wasm.module import inspect_module

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
_log = structlog.get_logger(__name__)

_DAMAGED_ON_THE_WAY = frozenset({"DigestMismatch", "SizeMismatch"})
"""Reasons that say nothing about the content itself: the next try may bring the right bytes."""

_REMEMBERED_MOST = 10_000
"""Contents and refusals remembered; the oldest go first. Forgetting one costs a download, nothing else."""


@dataclass(frozen=True, slots=True)
class _Module:
    """What is known of bytes that are, or were, in the store."""

    sha256: Sha256Hex
    size: int
    abi: str


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One call of `fetch`, with what every step of it needs."""

    request: FetchRequest
    source: ModuleSource
    credential: Credential | None
    key: SourceKey


class ArtifactFetcher:
    """Fetches modules into `store`. `sources` by the field of `spec.filter.source` that is set."""

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
    ) -> None:
        self._settings = settings
        self._store = store
        self._sources = sources
        self._secrets = secrets
        self._pools = pools
        self._metrics = metrics
        self._flights = Flights(tasks)
        self._places = Places(settings.fetch, metrics=metrics)
        self._breakers = Breakers(settings.fetch, metrics=metrics)
        self._modules: OrderedDict[str, _Module] = OrderedDict()  # by content key
        self._inspected: OrderedDict[Sha256Hex, _Module] = OrderedDict()
        self._refused: OrderedDict[str, ContentRejected] = OrderedDict()  # by content key

    async def fetch(self, request: FetchRequest) -> Record:
        """Bring the module into the store and say what the source resolved to.

        Raises an AutoWasmError that says what to do next; every expected failure is one.
        """
        kind = "registry" if request.source.registry else "object"
        try:
            record = await self._fetch(request, self._sources[kind])
        except AutoWasmError as error:
            self._metrics.fetches.labels(kind, error.reason).inc()
            raise
        self._metrics.fetches.labels(kind, "Success").inc()
        return record

    async def _fetch(self, request: FetchRequest, source: ModuleSource) -> Record:
        if request.record is not None and request.record.sha256 in self._store:
            return request.record
        credential = await self._credential(request)
        attempt = _Attempt(request, source, credential, source.key(request.source, credential))
        try:
            pinned, module = await self._obtain(attempt, await self._pin(attempt))
        except SourceDenied as error:
            raise self._explain_denied(attempt, error) from error
        self._breakers.succeeded(attempt.key)
        self._check_promised(request, module)
        if request.record is not None:
            return request.record
        return Record(
            source=str(request.source),
            sha256=module.sha256,
            size=module.size,
            abi=module.abi,
            image=pinned.image,
            url=pinned.url,
            etag=pinned.etag,
            last_modified=pinned.last_modified,
        )

    async def _credential(self, request: FetchRequest) -> Credential | None:
        if request.secret is None or request.source.registry is None:
            return None
        return await pullsecrets.credential_for(
            self._secrets,
            namespace=request.namespace,
            name=request.secret,
            reference=ImageReference.parse(request.source.registry.image),
        )

    @staticmethod
    def _explain_denied(attempt: _Attempt, error: SourceDenied) -> SourceDenied:
        secret = attempt.request.secret
        if secret is None or attempt.credential is not None:
            return error
        return SourceDenied(
            f"{error}; spec.secret: Secret {secret} has no entry for {attempt.key.host}, "
            "so the image was asked for anonymously",
            reason=error.reason,
        )

    async def _pin(self, attempt: _Attempt) -> Pinned:
        """What to fetch: what the record names, else what the source names now. Proof, too, that we may have it."""
        request, record = attempt.request, attempt.request.record
        if record is None:
            ask = partial(attempt.source.resolve, request.source, credential=attempt.credential)
        else:
            ask = partial(attempt.source.pin, record, credential=attempt.credential)
        named = record.origin if record is not None else ""
        return await self._flights.join(
            ("resolve", str(request.source), named, attempt.key.credential),
            partial(self._counted, attempt, "resolve", ask),
            place=self._place(attempt),
        )

    async def _obtain(self, attempt: _Attempt, pinned: Pinned) -> tuple[Pinned, _Module]:
        """The module behind `pinned`: from the store if it is there, else fetched once for all who wait."""
        stored = await self._stored(pinned)
        if stored is not None:
            return pinned, stored
        return await self._flights.join(
            ("fetch", pinned.content_key or str(attempt.request.source), attempt.key.credential),
            partial(self._counted, attempt, "fetch", partial(self._fetch_now, attempt, pinned)),
            place=self._place(attempt),
        )

    async def _stored(self, pinned: Pinned) -> _Module | None:
        """The module behind `pinned` if it is in the store. Raises what it was refused for, if it was."""
        content = pinned.content_key
        if content in self._refused:
            refused = self._refused[content]
            raise ContentRejected(str(refused), reason=refused.reason)
        if (known := self._modules.get(content)) is not None and known.sha256 in self._store:
            return known
        if pinned.sha256 is None or pinned.sha256 not in self._store:
            return None
        module = await self._inspect_stored(pinned.sha256)
        _keep(self._modules, content, module)
        return module

    def _place(self, attempt: _Attempt) -> Callable[[], AbstractAsyncContextManager[None]]:
        return partial(self._places.place, attempt.request.namespace, attempt.key.host)

    async def _counted(self, attempt: _Attempt, stage: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run a step that asks the source, and keep the account of its failures."""
        self._breakers.check(attempt.key)
        try:
            with self._timed(attempt.source.kind, stage):
                return await work()
        except AutoWasmError as error:
            self._breakers.failed(attempt.key, error)
            raise

    async def _fetch_now(self, attempt: _Attempt, pinned: Pinned) -> tuple[Pinned, _Module]:
        # While we waited for a place, somebody with another credential may have brought it.
        if (stored := await self._stored(pinned)) is not None:
            return pinned, stored
        try:
            fetched, module = await self._download(attempt, pinned)
        except ContentRejected as error:
            if pinned.content_key and error.reason not in _DAMAGED_ON_THE_WAY:
                verdict = ContentRejected(str(error), reason=error.reason)  # without the frames
                _keep(self._refused, pinned.content_key, verdict)
            raise
        if fetched.content_key:
            _keep(self._modules, fetched.content_key, module)
        _log.info(
            "module stored",
            digest=module.sha256,
            size=module.size,
            abi=module.abi,
            source=fetched.image or attempt.key.host,
        )
        return fetched, module

    async def _download(self, attempt: _Attempt, pinned: Pinned) -> tuple[Pinned, _Module]:
        """Stage ▶ verify ▶ store. Nothing is in the store before every check has passed."""
        source = attempt.source
        received = self._metrics.fetched_bytes.labels(source.kind)
        async with self._store.stage() as stage:
            with self._timed(source.kind, "download"):
                fetched = await source.fetch(
                    pinned,
                    stage.path,
                    workdir=stage.path.parent,
                    credential=attempt.credential,
                    on_bytes=received.inc,
                )
            if fetched.sha256 is None:
                raise RuntimeError(f"source {source.kind} returned a module without its digest")
            with self._timed(source.kind, "verify"):
                module = await self._inspect(stage.path, fetched.sha256)
            with self._timed(source.kind, "store"):
                await self._store.commit(stage, fetched.sha256)
        return fetched, module

    async def _inspect_stored(self, sha256: Sha256Hex) -> _Module:
        """What a stored module is: it was checked before it was stored, so this only reads it again."""
        known = self._inspected.get(sha256)
        return known or await self._inspect(self._store.path(sha256), sha256)

    async def _inspect(self, path: Path, sha256: Sha256Hex) -> _Module:
        info = await self._pools.parsing.run(
            inspect_module,
            path,
            limits=self._settings.limits,
            allow_imports=self._settings.allow_imports,
        )
        module = _Module(sha256, info.size, info.abi)
        _keep(self._inspected, sha256, module)
        return module

    @staticmethod
    def _check_promised(request: FetchRequest, module: _Module) -> None:
        """Only now, not in a flight: others who share it may have been promised something else."""
        record = request.record
        if record is not None and record.sha256 != module.sha256:
            raise ContentRejected(
                f"{record.origin} held sha256:{record.sha256} when it was published and holds "
                f"sha256:{module.sha256} now",
                reason="DigestMismatch",
            )
        if request.expected is not None and request.expected != module.sha256:
            raise ContentRejected(
                f"spec.filter.sha256: the module has sha256 {module.sha256}, not {request.expected}; "
                "it is not used",
                reason="Sha256Mismatch",
            )

    @contextmanager
    def _timed(self, kind: str, stage: str) -> Iterator[None]:
        begin, outcome = time.perf_counter(), "error"
        try:
            yield
            outcome = "success"
        finally:
            seconds = time.perf_counter() - begin
            self._metrics.fetch_seconds.labels(kind, stage, outcome).observe(seconds)


def _keep(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _REMEMBERED_MOST:
        memory.popitem(last=False)
