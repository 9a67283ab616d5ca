"""Budget: what is spoken for, by whom, and whether one more fits. Arithmetic over the store, the pins, and promises.

Not the removal of anything (`retention.py`). Invariants: what a namespace has published already is never refused to it
(ADR 7), so only news can exceed a share; one namespace's share is no business of another's.

Which blobs go first. Pure.

Not their removal. Invariants: a blob in a history goes after all that nobody names; among equals the longest unused goes
first; nothing is chosen beyond what is asked for, and nothing at all if all of it would not do.

Evictor: removes what nobody needs, and only that.

Not a decision that something has to go (`admission.py`, `retention.py`), nor which goes first (`eviction.py`). Invariant: a blob
that is needed at the moment of its removal stays, whoever chose it.
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
from autowasm.telemetry.metrics import Metrics
from autowasm.units import format_size

NAMESPACE_SHARE_EXCEEDED: Final = "NamespaceShareExceeded"
NOBODY: Final = ""
"""No namespace has this name."""


class StoredBlob(Protocol):
    """What the budget asks of a store."""

    def __contains__(self, sha256: object) -> bool:
        """Whether it is stored."""

    def size(self, sha256: Sha256Hex) -> int:
        """Bytes."""

    def digests(self) -> frozenset[Sha256Hex]:
        """All."""


@dataclass(slots=True, eq=False)
class _Reservation:
    budget: "DiskQuota"
    namespace: str
    owner: str
    sha256: Sha256Hex | None
    size: int

    def hold(self, sha256: Sha256Hex, size: int) -> None:
        self.budget.resize(self, size)
        self.sha256 = sha256
        self.budget.keep(self)


class DiskQuota:
    """`share`: bytes that one namespace may pin. `held`: seconds from being stored to being pinned."""

    def __init__(
        self,
        stored: StoredBlob,
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
        self._claims: set[_Reservation] = set()
        self._claimed: defaultdict[str, int] = defaultdict(int)
        """Bytes that a namespace's claims are for, whatever they have in common."""
        self._holds: defaultdict[Sha256Hex, dict[str, float]] = defaultdict(dict)
        pins.watch(self._published)

    def is_needed(self, sha256: Sha256Hex) -> bool:
        """True for a blob that must not go: published, or about to be."""
        return self._pins.is_published(sha256) or bool(self._holders(sha256))

    def is_named(self, sha256: Sha256Hex) -> bool:
        """True while it is in use in any way: needed, or in a history."""
        return self.is_needed(sha256) or self._pins.is_kept(sha256)

    def _holders(self, sha256: Sha256Hex) -> list[str]:
        now = self._monotonic()
        return [who for who, until in self._holds.get(sha256, {}).items() if until >= now]

    def _published(self, namespace: str, sha256: Sha256Hex) -> None:
        """What a hold waits for has happened."""
        holds = self._holds.get(sha256)
        if holds is not None:
            holds.pop(namespace, None)
            holds.pop(NOBODY, None)
            if not holds:
                del self._holds[sha256]

    def forget_old_holds(self) -> None:
        """Now and then: those that nothing came of."""
        for sha256 in [sha256 for sha256 in self._holds if not self._holders(sha256)]:
            del self._holds[sha256]

    def needed(self) -> dict[Sha256Hex, int]:
        """Sizes of the stored blobs that must not go."""
        return {
            sha256: self._stored.size(sha256)
            for sha256 in self._stored.digests()
            if self.is_needed(sha256)
        }

    @contextlib.contextmanager
    def claim(
        self,
        namespace: str,
        *,
        owner: str = "",
        sha256: Sha256Hex | None = None,
        size: int | None = None,
    ) -> Iterator[_Reservation]:
        """As `admission.Keeper.claim`."""
        claim = _Reservation(self, namespace, owner, sha256, size or 0)
        self._check_share(claim)
        self._claims.add(claim)
        self._claimed[namespace] += claim.size
        try:
            yield claim
        finally:
            self._claims.discard(claim)
            self.resize(claim, 0)
            if not self._claimed[namespace]:
                del self._claimed[namespace]

    def resize(self, claim: _Reservation, size: int) -> None:
        """The claim is for so many bytes."""
        self._claimed[claim.namespace] += size - claim.size
        claim.size = size

    def hold(self, namespace: str, sha256: Sha256Hex, size: int, *, owner: str = "") -> None:
        """Keep the blob until the namespace publishes it, for a while. Raises StorageError (`NamespaceShareExceeded`)."""
        self.keep(_Reservation(self, namespace, owner, sha256, size))

    def keep(self, claim: _Reservation) -> None:
        """The same for a claim whose digest and size are known by now."""
        self._check_share(claim)
        sha256, namespace = claim.sha256, claim.namespace
        if sha256 is not None and not self._pins.is_published_by(namespace, sha256):
            self._holds[sha256][namespace] = self._monotonic() + self._held

    def hold_for_anybody(self, sha256: Sha256Hex) -> None:
        """Keep the blob until somebody publishes it, for a while, on nobody's account."""
        if not self._pins.is_published(sha256):
            self._holds[sha256][NOBODY] = self._monotonic() + self._held

    def _check_share(self, claim: _Reservation) -> None:
        namespace, sha256 = claim.namespace, claim.sha256
        if sha256 is not None and self._pins.is_published_by(namespace, sha256):
            return
        used = self._kept_for(namespace, besides=claim)
        at_most = sum(used.values()) + self._claimed.get(namespace, 0) + claim.size
        if at_most < self._share:
            return  # a thousand claims at once, each with a look at all others, would hold the loop
        self._add_claims(used, namespace, besides=claim)
        size = 0 if sha256 in used else claim.size
        total = sum(used.values())
        if total + size <= self._share and (claim.size or total < self._share):
            return
        self._metrics.storage_refusals.labels(NAMESPACE_SHARE_EXCEEDED).inc()
        wanted = f"this one of {format_size(claim.size)}" if claim.size else "another one"
        raise StorageError(
            f"namespace {namespace} has modules of {format_size(total)} published or on the way, and "
            f"{wanted} would exceed its share of {format_size(self._share)}: delete AutoWasms of the "
            "namespace that are no longer needed, or have the share raised (--namespace-disk-budget)",
            reason=NAMESPACE_SHARE_EXCEEDED,
        )

    def _kept_for(self, namespace: str, *, besides: _Reservation) -> dict[object, int]:
        """Sizes by digest of what is stored on the namespace's account."""
        held = [sha256 for sha256 in self._holds if namespace in self._holders(sha256)]
        published = set(self._pins.published_by(namespace)) - self._pins.replaceable(besides.owner)
        return {
            sha256: self._stored.size(sha256)
            for sha256 in (*published, *held)
            if sha256 in self._stored
        }

    def _add_claims(
        self, used: dict[object, int], namespace: str, *, besides: _Reservation
    ) -> None:
        """What is on the way for it, by digest; a claim that knows none yet, by itself."""
        for claim in self._claims:
            if claim is not besides and claim.namespace == namespace:
                used.setdefault(claim.sha256 or claim, claim.size)


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """A stored blob that nobody has published. `used`: when it was last, in seconds of any clock; `kept`: in a history."""

    sha256: Sha256Hex
    size: int
    used: float
    kept: bool


def expired(candidates: Iterable[EvictionCandidate], *, before: float) -> list[EvictionCandidate]:
    """Those that nobody names and that were last used before that time."""
    return [each for each in candidates if not each.kept and each.used < before]


def choose(candidates: Iterable[EvictionCandidate], size: int) -> list[EvictionCandidate]:
    """The first to go for `size` bytes of room; empty if all together are less."""
    chosen: list[EvictionCandidate] = []
    for each in sorted(candidates, key=lambda each: (each.kept, each.used, each.sha256)):
        if size <= 0:
            break
        chosen.append(each)
        size -= each.size
    return chosen if size <= 0 else []


_log = structlog.get_logger(__name__)


class Evictor:
    """For one store."""

    def __init__(
        self,
        store: BlobStore,
        pins: Pins,
        budget: DiskQuota,
        *,
        last_use: LastUse,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._pins = pins
        self._budget = budget
        self._metrics = metrics
        self.last_use = last_use

    def candidates(self) -> list[EvictionCandidate]:
        """All that could be removed now: nothing, until everybody who may need something was heard."""
        if not self._pins.complete:
            return []
        store, needed = self._store, self._budget.needed()
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
        """Remove what of `blobs` is still not needed. Raises StorageError."""
        for each in blobs:
            if await self._store.discard(each.sha256, unless=self._budget.is_needed):
                self._metrics.blobs_evicted.labels(reason).inc()
                _log.info("blob evicted", digest=each.sha256, size=each.size, reason=reason)
