"""DiskQuota, the choice of the blobs to evict, and the Evictor that removes them.

`admission.py` and `retention.py` decide when to evict. Invariants: a blob in a history is
evicted after all blobs that no owner names; among equals the least recently used comes first; never more blobs are chosen
than the size needs, and none if all together are too small; a blob that is needed at the moment of its removal stays.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from autowasm.blobs.lastuse import LastUse
from autowasm.blobs.pins import Pins
from autowasm.blobs.store import BlobStore
from autowasm.digest import Sha256Hex
from autowasm.errors import StorageError
from autowasm.reasons import Reason
from autowasm.telemetry.metrics import Metrics
from autowasm.units import format_size

ANY_NAMESPACE: Final = ""
"""No namespace has this name."""


class StoredBlobs(Protocol):
    """The part of a store that the quota uses."""

    def __contains__(self, sha256: object) -> bool:
        """Whether the blob is stored."""

    def size(self, sha256: Sha256Hex) -> int:
        """Bytes."""

    def digests(self) -> frozenset[Sha256Hex]:
        """All digests."""


@dataclass(slots=True, eq=False)
class _Reservation:
    quota: "DiskQuota"
    namespace: str
    owner: str
    sha256: Sha256Hex | None
    size: int

    def hold(self, sha256: Sha256Hex, size: int) -> None:
        self.quota.resize(self, size)
        self.sha256 = sha256
        self.quota.keep(self)


class DiskQuota:
    """Quota of each namespace, computed from the store, the pins, and the reservations.

    `share`: bytes that one namespace may pin. `held`: seconds from being stored to being pinned. Invariants: a module that a
    namespace has published is never refused to it (ADR 7), so only new modules can exceed a quota; namespaces do not affect
    each other's quota.
    """

    def __init__(
        self,
        stored: StoredBlobs,
        pins: Pins,
        *,
        share: int,
        held: float,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stored = stored
        self._pins = pins
        self._share = share
        self._held = held
        self._metrics = metrics
        self._monotonic = monotonic
        self._reservations: set[_Reservation] = set()
        self._reserved: defaultdict[str, int] = defaultdict(int)
        """Bytes of all reservations of a namespace, including those for the same digest."""
        self._holds: defaultdict[Sha256Hex, dict[str, float]] = defaultdict(dict)
        pins.watch(self._published)

    def is_needed(self, sha256: Sha256Hex) -> bool:
        """True for a blob that must not be evicted: published, or about to be."""
        return self._pins.is_published(sha256) or bool(self._holders(sha256))

    def is_named(self, sha256: Sha256Hex) -> bool:
        """True for a blob in use in any way: needed, or in a history."""
        return self.is_needed(sha256) or self._pins.is_kept(sha256)

    def _holders(self, sha256: Sha256Hex) -> list[str]:
        now = self._monotonic()
        return [
            namespace for namespace, until in self._holds.get(sha256, {}).items() if until >= now
        ]

    def _published(self, namespace: str, sha256: Sha256Hex) -> None:
        """Release the holds of a digest that is now published."""
        holds = self._holds.get(sha256)
        if holds is not None:
            holds.pop(namespace, None)
            holds.pop(ANY_NAMESPACE, None)
            if not holds:
                del self._holds[sha256]

    def forget_old_holds(self) -> None:
        """Drop expired holds."""
        for sha256 in [sha256 for sha256 in self._holds if not self._holders(sha256)]:
            del self._holds[sha256]

    def needed(self) -> dict[Sha256Hex, int]:
        """Sizes of the stored blobs that must not be evicted."""
        return {
            sha256: self._stored.size(sha256)
            for sha256 in self._stored.digests()
            if self.is_needed(sha256)
        }

    @contextlib.contextmanager
    def reserve(
        self,
        namespace: str,
        *,
        owner: str = "",
        sha256: Sha256Hex | None = None,
        size: int | None = None,
    ) -> Iterator[_Reservation]:
        """See `Admission.reserve` in `store.py`."""
        reservation = _Reservation(self, namespace, owner, sha256, size or 0)
        self._check_share(reservation)
        self._reservations.add(reservation)
        self._reserved[namespace] += reservation.size
        try:
            yield reservation
        finally:
            self._reservations.discard(reservation)
            self.resize(reservation, 0)
            if not self._reserved[namespace]:
                del self._reserved[namespace]

    def resize(self, reservation: _Reservation, size: int) -> None:
        """Change the reservation's size in bytes."""
        self._reserved[reservation.namespace] += size - reservation.size
        reservation.size = size

    def hold(self, namespace: str, sha256: Sha256Hex, size: int, *, owner: str = "") -> None:
        """Keep the blob for `held` seconds until the namespace publishes it. Raises StorageError (`NamespaceShareExceeded`)."""
        self.keep(_Reservation(self, namespace, owner, sha256, size))

    def keep(self, reservation: _Reservation) -> None:
        """The same for a reservation whose digest and size are now known."""
        self._check_share(reservation)
        sha256, namespace = reservation.sha256, reservation.namespace
        if sha256 is not None and not self._pins.is_published_by(namespace, sha256):
            self._holds[sha256][namespace] = self._monotonic() + self._held

    def hold_for_any(self, sha256: Sha256Hex) -> None:
        """Keep the blob for `held` seconds until a namespace publishes it. No quota is charged."""
        if not self._pins.is_published(sha256):
            self._holds[sha256][ANY_NAMESPACE] = self._monotonic() + self._held

    def _check_share(self, reservation: _Reservation) -> None:
        namespace, sha256 = reservation.namespace, reservation.sha256
        if sha256 is not None and self._pins.is_published_by(namespace, sha256):
            return
        used = self._kept_for(namespace, besides=reservation)
        at_most = sum(used.values()) + self._reserved.get(namespace, 0) + reservation.size
        if at_most < self._share:
            return  # comparing each of a thousand concurrent reservations with all others would hold the loop
        self._add_reservations(used, namespace, besides=reservation)
        size = 0 if sha256 in used else reservation.size
        total = sum(used.values())
        if total + size <= self._share and (reservation.size or total < self._share):
            return
        self._metrics.storage_refusals.labels(Reason.NAMESPACE_SHARE_EXCEEDED).inc()
        wanted = (
            f"this one ({format_size(reservation.size)})" if reservation.size else "another one"
        )
        raise StorageError(
            f"namespace {namespace} has {format_size(total)} of modules published or being fetched, and "
            f"{wanted} would exceed its quota of {format_size(self._share)}: delete AutoWasms of the "
            "namespace that are no longer needed, or raise the quota (--namespace-disk-budget)",
            reason=Reason.NAMESPACE_SHARE_EXCEEDED,
        )

    def _kept_for(self, namespace: str, *, besides: _Reservation) -> dict[object, int]:
        """Sizes by digest of the stored blobs that count in the namespace's quota."""
        held = [sha256 for sha256 in self._holds if namespace in self._holders(sha256)]
        published = set(self._pins.published_by(namespace)) - self._pins.replaceable(besides.owner)
        return {
            sha256: self._stored.size(sha256)
            for sha256 in (*published, *held)
            if sha256 in self._stored
        }

    def _add_reservations(
        self, used: dict[object, int], namespace: str, *, besides: _Reservation
    ) -> None:
        """Add the namespace's other reservations, by digest; a reservation without a digest counts by itself."""
        for reservation in self._reservations:
            if reservation is not besides and reservation.namespace == namespace:
                used.setdefault(reservation.sha256 or reservation, reservation.size)


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """A stored blob that is not published. `used`: its last use, in seconds of any clock; `kept`: it is in a history."""

    sha256: Sha256Hex
    size: int
    used: float
    kept: bool


def expired(candidates: Iterable[EvictionCandidate], *, before: float) -> list[EvictionCandidate]:
    """Candidates in no history that were last used before that time."""
    return [each for each in candidates if not each.kept and each.used < before]


def choose(candidates: Iterable[EvictionCandidate], size: int) -> list[EvictionCandidate]:
    """The candidates to evict for `size` bytes of room; empty if all together are smaller. Pure."""
    chosen: list[EvictionCandidate] = []
    for each in sorted(candidates, key=lambda each: (each.kept, each.used, each.sha256)):
        if size <= 0:
            break
        chosen.append(each)
        size -= each.size
    return chosen if size <= 0 else []


_log = structlog.get_logger(__name__)


class Evictor:
    """Removes blobs of one store."""

    def __init__(
        self,
        store: BlobStore,
        pins: Pins,
        quota: DiskQuota,
        *,
        last_use: LastUse,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._pins = pins
        self._quota = quota
        self._metrics = metrics
        self.last_use = last_use

    def candidates(self) -> list[EvictionCandidate]:
        """All blobs that could be evicted now; none until every owner has reported."""
        if not self._pins.complete:
            return []
        store, needed = self._store, self._quota.needed()
        return [
            EvictionCandidate(
                sha256,
                store.size(sha256),
                max(self.last_use.last(sha256), self.last_use.clock.at(store.served_at(sha256))),
                self._pins.is_kept(sha256),
            )
            for sha256 in store.digests()
            if sha256 not in needed
        ]

    async def remove(self, blobs: Iterable[EvictionCandidate], reason: str) -> None:
        """Remove the blobs that are still not needed. Raises StorageError."""
        for each in blobs:
            if await self._store.discard(each.sha256, unless=self._quota.is_needed):
                self._metrics.blobs_evicted.labels(reason).inc()
                _log.info("blob evicted", digest=each.sha256, size=each.size, reason=reason)
