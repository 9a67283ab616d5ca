"""PublishedModules: the digests in EnvoyFilters, and where each can be fetched again (ADR 7, ADR 15).

It is the blob server's `BlobSource` (`server/ondemand.py`). Invariant: a digest is known as long as any AutoWasm's
EnvoyFilter or record names it.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import Source
from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.peers import Peers, hedged
from autowasm.artifacts.source import FetchRequest
from autowasm.blobs.pins import Pins
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, SourceUnavailable

NEXT_ORIGIN_AFTER = 1.0
"""Seconds until the next origin is tried beside one that has not answered: a tenant whose registry hangs must not delay
another tenant's module with the same bytes."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one AutoWasm's published module came from: enough to fetch exactly it again.

    Without `source` and `record` the digest is known, but there is no trusted origin to fetch it from.
    """

    namespace: str
    sha256: Sha256Hex
    record: Record | None = None
    source: Source | None = None
    secret: str | None = None


class PublishedModules:
    """Digests by owner (an AutoWasm's key as text)."""

    def __init__(
        self, fetcher: ArtifactFetcher, *, pins: Pins | None = None, peers: Peers | None = None
    ) -> None:
        self._fetcher = fetcher
        self._peers = peers
        self._pins = pins or Pins()
        self._origins: dict[str, tuple[Origin, ...]] = {}
        self._current: dict[str, tuple[tuple[Origin, ...], tuple[Sha256Hex, ...]]] = {}
        self._owners: defaultdict[Sha256Hex, set[str]] = defaultdict(set)
        self._waiters: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def set(
        self, owner: str, origins: tuple[Origin, ...], *, history: Iterable[Sha256Hex] = ()
    ) -> None:
        """Set what `owner` has published or is about to publish, and the history that it may revert to. Replaces the last state."""
        kept = tuple(history)
        if self._current.get(owner) == (origins, kept):
            return
        self._current[owner] = (origins, kept)
        self._pins.set(
            owner,
            namespace=origins[0].namespace if origins else "",
            published=[origin.sha256 for origin in origins],
            kept=kept,
        )
        self._unlink(owner)
        self._origins[owner] = origins
        for origin in origins:
            self._owners[origin.sha256].add(owner)
            for waiter in self._waiters.pop(origin.sha256, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def remove(self, owner: str) -> None:
        """Remove a deleted owner."""
        self._unlink(owner)
        self._origins.pop(owner, None)
        self._current.pop(owner, None)
        self._pins.remove(owner)

    def _unlink(self, owner: str) -> None:
        for origin in self._origins.get(owner, ()):
            owners = self._owners[origin.sha256]
            owners.discard(owner)
            if not owners:
                del self._owners[origin.sha256]

    def is_known(self, sha256: Sha256Hex) -> bool:
        """True if the digest is in an EnvoyFilter, or about to be, so that an Envoy may fetch it."""
        return sha256 in self._owners

    async def wait_known(self, sha256: Sha256Hex) -> None:
        """Return once the digest is known. Meanwhile the peers are asked, because one of them may already know it."""
        if self.is_known(sha256):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[sha256].add(waiter)
        try:
            if self._peers is None:
                await waiter
                return
            async with asyncio.TaskGroup() as tasks:
                seeking = tasks.create_task(self._peers.seek(sha256), name=f"seek {sha256}")
                await waiter
                seeking.cancel()
        finally:
            waiters = self._waiters.get(sha256)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[sha256]

    async def fill(self, sha256: Sha256Hex) -> Literal["peer", "origin"]:
        """Bring a known digest into the store: from a peer, else from the first origin that works.

        Returns which it was. Raises the last origin's error.
        """
        if self._peers is None:
            return await self._fill_from_origins(sha256)
        copy = self._peers.copy(sha256)
        return await hedged(copy, lambda: self._fill_from_origins(sha256)) or "peer"

    async def _fill_from_origins(self, sha256: Sha256Hex) -> Literal["origin"]:
        failure: AutoWasmError = SourceUnavailable(f"no source is known for sha256:{sha256}")
        untried = self._requests(sha256)
        running: set[asyncio.Task[AutoWasmError | None]] = set()
        async with asyncio.TaskGroup() as tasks:
            while untried or running:
                if untried:
                    fetch = self._fetch(untried.popleft())
                    running.add(tasks.create_task(fetch, name=f"fill {sha256}"))
                ended, running = await asyncio.wait(
                    running,
                    timeout=NEXT_ORIGIN_AFTER if untried else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in ended:
                    error = task.result()
                    if error is None:
                        for other in running:
                            other.cancel()
                        return "origin"
                    failure = error
        raise failure

    def _requests(self, sha256: Sha256Hex) -> deque[FetchRequest]:
        origins = (
            origin
            for owner in sorted(self._owners.get(sha256, ()))
            for origin in self._origins[owner]
            if origin.sha256 == sha256
        )
        requests = (
            FetchRequest(
                namespace=origin.namespace,
                source=origin.source,
                secret=origin.secret,
                record=origin.record,
            )
            for origin in origins
            if origin.source is not None and origin.record is not None
        )
        return deque(dict.fromkeys(requests))

    async def _fetch(self, request: FetchRequest) -> AutoWasmError | None:
        try:
            await self._fetcher.fetch_at_source(request)
        except AutoWasmError as error:
            return error
        return None
