"""Pins: which owners need which blobs, updated one owner at a time.

Eviction is in `eviction.py`. There are two strengths. A *published* digest is in an EnvoyFilter, or is about to be, and its
blob is never evicted. A *kept* digest is in a history: its blob outlives every grace period, but is evicted, last of all, if
the disk budget needs its place. Invariant: until every owner of the start has reported (`expect`), no blob counts as unneeded.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from autowasm.digest import Sha256Hex


@dataclass(frozen=True, slots=True)
class _Needs:
    namespace: str
    published: frozenset[Sha256Hex]
    kept: frozenset[Sha256Hex]


class Pins:
    """Digests by owner; an owner is any text that names an object. All methods are cheap and synchronous."""

    def __init__(self) -> None:
        self._owners: dict[str, _Needs] = {}
        self._namespaces: defaultdict[Sha256Hex, Counter[str]] = defaultdict(Counter)
        self._published: defaultdict[str, Counter[Sha256Hex]] = defaultdict(Counter)
        self._kept: Counter[Sha256Hex] = Counter()
        self._awaited: set[str] | None = None
        self._all_reported = asyncio.Event()
        self._watcher: Callable[[str, Sha256Hex], None] = lambda _namespace, _sha256: None

    def watch(self, watcher: Callable[[str, Sha256Hex], None]) -> None:
        """Call `watcher` with namespace and digest whenever a digest is published."""
        self._watcher = watcher

    def set(
        self,
        owner: str,
        *,
        namespace: str,
        published: Iterable[Sha256Hex],
        kept: Iterable[Sha256Hex] = (),
    ) -> None:
        """Set all that `owner` needs now; this replaces its earlier needs."""
        needs = _Needs(namespace, frozenset(published), frozenset(kept))
        if self._owners.get(owner) != needs:
            self._forget(owner)
            self._owners[owner] = needs
            for sha256 in needs.published:
                self._namespaces[sha256][namespace] += 1
                self._published[namespace][sha256] += 1
                self._watcher(namespace, sha256)
            self._kept.update(needs.kept)
        self._reported(owner)

    def remove(self, owner: str) -> None:
        """Remove a deleted owner."""
        self._forget(owner)
        self._reported(owner)

    def _forget(self, owner: str) -> None:
        needs = self._owners.pop(owner, None)
        if needs is None:
            return
        for sha256 in needs.published:
            _less(self._namespaces[sha256], needs.namespace)
            _less(self._published[needs.namespace], sha256)
            if not self._namespaces[sha256]:
                del self._namespaces[sha256]
        if not self._published.get(needs.namespace, True):
            del self._published[needs.namespace]
        for sha256 in needs.kept:
            _less(self._kept, sha256)

    def _reported(self, owner: str) -> None:
        if self._awaited is not None:
            self._awaited.discard(owner)
            if not self._awaited:
                self._all_reported.set()

    def expect(self, owners: Iterable[str]) -> None:
        """Set the owners that exist. `complete` is False until each of them has reported."""
        self._awaited = {owner for owner in owners if owner not in self._owners}
        if not self._awaited:
            self._all_reported.set()

    @property
    def complete(self) -> bool:
        """Whether every expected owner has reported. Before that, a blob that no owner names may still be needed."""
        return self._all_reported.is_set()

    async def wait_complete(self) -> None:
        """Return once `complete` is true."""
        await self._all_reported.wait()

    def is_published(self, sha256: Sha256Hex) -> bool:
        """Whether the digest is in an EnvoyFilter, or about to be, so that an Envoy may fetch it."""
        return sha256 in self._namespaces

    def is_published_by(self, namespace: str, sha256: Sha256Hex) -> bool:
        """The same, for the objects of one namespace."""
        return sha256 in self._namespaces and namespace in self._namespaces[sha256]

    def is_kept(self, sha256: Sha256Hex) -> bool:
        """Whether a history names it."""
        return sha256 in self._kept

    def published_by(self, namespace: str) -> Collection[Sha256Hex]:
        """The digests that a namespace publishes."""
        return self._published.get(namespace, Counter()).keys()

    def replaceable(self, owner: str) -> frozenset[Sha256Hex]:
        """Digests that only this owner publishes in its namespace: they are unpinned when the owner publishes another one."""
        needs = self._owners.get(owner)
        if needs is None:
            return frozenset()
        counts = self._published[needs.namespace]
        return frozenset(sha256 for sha256 in needs.published if counts[sha256] == 1)


def _less(counter: Counter[str] | Counter[Sha256Hex], key: str) -> None:
    counter[key] -= 1  # type: ignore[index]
    if counter[key] <= 0:  # type: ignore[index]
        del counter[key]
