"""MutationCache: our own writes, until the informer shows them.

An informer lags milliseconds behind our writes; a reconcile that reads only the informer would write again, or run into a
conflict. Reads are not cached. Invariants: the cache never returns an object older than our last write, unless the informer has
not caught up for `KEPT` seconds; never one newer than the API server has stored; once the informer has passed our version, only
its store counts, even if it never showed the object: a list after a lost watch shows only objects that exist, not those that were created and deleted
in between.
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
    ) -> None:
        self._stored = stored
        self._position = position
        self._written: dict[ObjectKey, _Written] = {}
        self._in_flight: Counter[ObjectKey] = Counter()
        """Objects with a call to the API server in flight, and how many: a status has two writers."""
        self._gone: set[ObjectKey] = set()
        """Objects in `_in_flight` that were deleted meanwhile."""

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
    def in_flight(self, key: ObjectKey) -> Iterator[None]:
        """Encloses a call whose answer goes to `wrote`. A deletion that the informer shows meanwhile is newer than the answer."""
        self._in_flight[key] += 1
        try:
            yield
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]
                self._gone.discard(key)

    def wrote(self, key: ObjectKey, document: Document) -> None:
        """Store the answer of an accepted write. The watch may have shown this or a later version already."""
        stored = self._stored(key)
        reached = stored is not None and _reached(stored, document)
        if key in self._gone or reached or self._is_passed(document):
            self._written.pop(key, None)
        else:
            until = asyncio.get_running_loop().time() + KEPT
            self._written[key] = _Written(document, until)

    def observed(self, key: ObjectKey, document: Document | None) -> bool:
        """The informer shows a version of the object (None: deleted).

        True if it is our write or an older version: no reconcile is needed. Drops our write once the informer has passed it.
        """
        if document is None and key in self._in_flight:
            self._gone.add(key)
        written = self._written.get(key)
        if written is None:
            return False
        if document is None:
            del self._written[key]
            return False
        if _reached(document, written.document):
            del self._written[key]
            return _version(document) == _version(written.document)
        return True

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


def _reached(observed: Document, written: Document) -> bool:
    """True if `observed` is `written` or later."""
    shown, own = _version(observed), _version(written)
    if shown.isdecimal() and own.isdecimal():
        return int(shown) >= int(own)  # comparable since Kubernetes 1.35, and in every etcd before
    # Otherwise only equality can be checked; a recreated object has another uid.
    same = (observed.get("metadata") or {}).get("uid") == (written.get("metadata") or {}).get("uid")
    return shown == own or not same
