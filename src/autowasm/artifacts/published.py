"""PublishedModules: which digests Envoys have been told to fetch, and where each can be had again (design D7, D8).

The blob server's view of the world (`server.blobs.BlobSource`). Not the store and not a decision about what to publish.
Invariant: a digest is known as long as any AutoWasm's EnvoyFilter or record names it.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import Source
from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.source import FetchRequest
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, SourceUnavailable


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one AutoWasm's published module came from: enough to fetch exactly it again.

    `source` None: the digest is known, but this owner's spec names no place to fetch it from.
    """

    namespace: str
    source: Source | None
    secret: str | None
    record: Record


class PublishedModules:
    """Digests by owner (an AutoWasm's key as text)."""

    def __init__(self, fetcher: ArtifactFetcher) -> None:
        self._fetcher = fetcher
        self._origins: dict[str, tuple[Origin, ...]] = {}
        self._owners: defaultdict[Sha256Hex, set[str]] = defaultdict(set)
        self._waiters: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def set(self, owner: str, origins: tuple[Origin, ...]) -> None:
        """What `owner` has published or is about to; replaces what it had."""
        self._unlink(owner)
        self._origins[owner] = origins
        for origin in origins:
            self._owners[origin.record.sha256].add(owner)
            for waiter in self._waiters.pop(origin.record.sha256, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def remove(self, owner: str) -> None:
        """`owner` is gone."""
        self._unlink(owner)
        self._origins.pop(owner, None)

    def _unlink(self, owner: str) -> None:
        for origin in self._origins.get(owner, ()):
            owners = self._owners[origin.record.sha256]
            owners.discard(owner)
            if not owners:
                del self._owners[origin.record.sha256]

    def is_known(self, sha256: Sha256Hex) -> bool:
        """True if an Envoy may have been told to fetch it."""
        return sha256 in self._owners

    async def wait_known(self, sha256: Sha256Hex) -> None:
        """Return once the digest is known."""
        if self.is_known(sha256):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[sha256].add(waiter)
        try:
            await waiter
        finally:
            waiters = self._waiters.get(sha256)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[sha256]

    async def fill(self, sha256: Sha256Hex) -> None:
        """Bring a known digest into the store, from any origin that works. Raises the last origin's error."""
        failure: AutoWasmError = SourceUnavailable(f"nothing says where sha256:{sha256} comes from")
        for owner in sorted(self._owners.get(sha256, ())):
            for origin in self._origins.get(owner, ()):  # it may be gone by now
                if origin.record.sha256 != sha256 or origin.source is None:
                    continue
                try:
                    await self._fetcher.fetch(
                        FetchRequest(
                            namespace=origin.namespace,
                            source=origin.source,
                            secret=origin.secret,
                            record=origin.record,
                        )
                    )
                except AutoWasmError as error:
                    failure = error
                else:
                    return
        raise failure
