"""MutationCache: our own writes, until the informer shows them.

An informer lags milliseconds behind our writes; a reconcile that reads only the informer would write again, or run into a
conflict. It may also show a write before the API server's answer arrives: such an event waits for the answer. Reads are not cached.
Invariants: the cache never returns an object older than our last write, unless the informer has not caught up for `KEPT` seconds; never
one newer than the API server has stored; once the informer has passed our version, only its store counts, even if it never showed the
object: a list after a lost watch shows only objects that exist, not those that were created and deleted in between; an event that is
not the echo of our write is reported, at the latest at the end of the calls in flight.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from autowasm.kube.resources import ObjectKey

Document = Mapping[str, Any]

KEPT: Final = 60.0
"""Seconds. Where resourceVersions are not comparable, an object that was written and then deleted while no watch ran would seem to
exist forever. Dropping an entry too early costs a write that the API server refuses.
"""

_CHANGED_BY_ANY_WRITE: Final = frozenset({"resourceVersion", "managedFields"})


@dataclass(frozen=True, slots=True)
class _Written:
    document: Document
    until: float


class MutationCache:
    """A view of one resource; `stored` reads the informer's store, `position` is the resourceVersion up to which it is current."""

    def __init__(
        self,
        stored: Callable[[ObjectKey], Document | None],
        position: Callable[[], str | None] = lambda: None,
        *,
        changed: Callable[[ObjectKey], None] = lambda _: None,
    ) -> None:
        """`changed`: `observed` returned True for a version that is not our write after all."""
        self._stored = stored
        self._position = position
        self._changed = changed
        self._written: dict[ObjectKey, _Written] = {}
        self._in_flight: Counter[ObjectKey] = Counter()
        """Objects with a call to the API server in flight, and how many: a status has two writers."""
        self._read: dict[ObjectKey, dict[str, Any] | None] = {}
        """The metadata that a call in `_in_flight` leaves as it is; None: it changes them."""
        self._gone: set[ObjectKey] = set()
        """Objects in `_in_flight` that were deleted meanwhile."""
        self._undecided: dict[ObjectKey, str] = {}
        """The last version of objects in `_in_flight` that the informer has shown meanwhile, unless it is known to be our write."""

    def get(self, key: ObjectKey) -> Document | None:
        """The object as last written by us or shown by the informer."""
        written = self._written.get(key)
        if written is None:
            return self._stored(key)
        if asyncio.get_running_loop().time() >= written.until or self._is_passed(written.document):
            del self._written[key]
            return self._stored(key)
        return written.document

    @contextmanager
    def in_flight(self, key: ObjectKey, *, read: Document | None = None) -> Iterator[None]:
        """Encloses a call whose answer goes to `wrote`. A deletion that the informer shows meanwhile is newer than the answer.

        `read`: the object before a call that writes only its status; a version with other metadata, such as another generation,
        uid or annotation, cannot be the echo.
        """
        self._in_flight[key] += 1
        self._read[key] = _metadata(read) if read is not None else None
        try:
            yield
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key], self._read[key]
                self._gone.discard(key)
                if self._undecided.pop(key, None) is not None:
                    self._changed(key)

    def wrote(self, key: ObjectKey, document: Document) -> None:
        """Store the answer of an accepted write. The watch may have shown this or a later version already."""
        if self._undecided.get(key) == _version(document):
            del self._undecided[key]
        stored = self._stored(key)
        reached = stored is not None and _reached(stored, document)
        if key in self._gone or reached or self._is_passed(document):
            self._written.pop(key, None)
        else:
            until = asyncio.get_running_loop().time() + KEPT
            self._written[key] = _Written(document, until)

    def observed(self, key: ObjectKey, document: Document | None) -> bool:
        """The informer shows a version of the object (None: deleted).

        True if no reconcile is needed now: it is our write or an older version, or the answer of a call in flight decides whether it
        is. Drops our write once the informer has passed it.
        """
        if document is None:
            if key in self._in_flight:
                self._gone.add(key)
            self._undecided.pop(key, None)
            self._written.pop(key, None)
            return False
        written = self._written.get(key)
        if written is not None:
            if not _reached(document, written.document):
                return True
            del self._written[key]
            if _version(document) == _version(written.document):
                return True
        if key in self._in_flight and self._read[key] in (None, _metadata(document)):
            self._undecided[key] = _version(document)
            return True
        self._undecided.pop(key, None)  # reported now
        return False

    def _is_passed(self, document: Document) -> bool:
        """Whether the informer shows this version, a later one, or the deletion of the object."""
        position, version = self._position(), _version(document)
        comparable = position is not None and position.isdecimal() and version.isdecimal()
        return comparable and int(position or 0) >= int(version)

    def forget(self, key: ObjectKey) -> None:
        """Our write is outdated: after a conflict, or because the object is gone."""
        self._written.pop(key, None)


def _version(document: Document) -> str:
    return str((document.get("metadata") or {}).get("resourceVersion", ""))


def _metadata(document: Document) -> dict[str, Any]:
    """Those that no write of a status changes."""
    metadata = document.get("metadata") or {}
    return {name: metadata[name] for name in metadata if name not in _CHANGED_BY_ANY_WRITE}


def _reached(observed: Document, written: Document) -> bool:
    """True if `observed` is `written` or later."""
    shown, own = _version(observed), _version(written)
    if shown.isdecimal() and own.isdecimal():
        return int(shown) >= int(own)  # comparable since Kubernetes 1.35, and in every etcd before
    # Otherwise only equality can be checked; a recreated object has another uid.
    same = (observed.get("metadata") or {}).get("uid") == (written.get("metadata") or {}).get("uid")
    return shown == own or not same
