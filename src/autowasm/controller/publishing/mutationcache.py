"""MutationCache: what we wrote, until the informer shows it.

An informer is milliseconds behind our own writes; reading only it, a reconcile right after a write would write again, or
meet a conflict. Not a cache of reads. Invariants: what is shown is never older than our last write, unless the informer
has not caught up for `KEPT` seconds; it is never newer than what the API server has stored; once the informer has passed
the version that we wrote, only its store counts, also where it never showed the object: a list after a lost watch names what
is there, and says nothing of what came and went before it.
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
"""Seconds. Where resourceVersions cannot be compared, an object that was written and then deleted while no watch ran would be
taken for there for good. Forgetting one too early costs a write that the API server refuses."""


@dataclass(frozen=True, slots=True)
class _Written:
    document: Document
    until: float


class MutationCache:
    """Over the store of one resource; `stored` reads that, `position` is the resourceVersion up to which it is right."""

    def __init__(
        self,
        stored: Callable[[ObjectKey], Document | None],
        position: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._stored = stored
        self._position = position
        self._written: dict[ObjectKey, _Written] = {}
        self._asking: Counter[ObjectKey] = Counter()
        """Objects that the API server is being asked about, by how many: a status has two writers."""
        self._gone: set[ObjectKey] = set()
        """Those of them that went meanwhile."""

    def get(self, key: ObjectKey) -> Document | None:
        """The object as we last wrote or saw it."""
        written = self._written.get(key)
        if written is None:
            return self._stored(key)
        if asyncio.get_running_loop().time() >= written.until or self._is_passed(written.document):
            del self._written[key]
            return self._stored(key)
        return written.document

    @contextmanager
    def asking(self, key: ObjectKey) -> Iterator[None]:
        """Around a call whose answer goes to `wrote`: if the object is shown to be gone meanwhile, the answer is older than that."""
        self._asking[key] += 1
        try:
            yield
        finally:
            self._asking[key] -= 1
            if not self._asking[key]:
                del self._asking[key]
                self._gone.discard(key)

    def wrote(self, key: ObjectKey, document: Document) -> None:
        """The answer of a write that was accepted. The watch may have brought it, or what came after it, before."""
        stored = self._stored(key)
        reached = stored is not None and _reached(stored, document)
        if key in self._gone or reached or self._is_passed(document):
            self._written.pop(key, None)
        else:
            until = asyncio.get_running_loop().time() + KEPT
            self._written[key] = _Written(document, until)

    def observed(self, key: ObjectKey, document: Document | None) -> bool:
        """The informer shows a state of the object (None: it is gone).

        True if that is older than what we wrote, or just that: nobody need look. Drops what we wrote once it is passed.
        """
        if document is None and key in self._asking:
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
        """Whether the store shows this version, a later one, or that the object is gone."""
        position, version = self._position(), _version(document)
        comparable = position is not None and position.isdecimal() and version.isdecimal()
        return comparable and int(position or 0) >= int(version)

    def forget(self, key: ObjectKey) -> None:
        """What we wrote is known to be outdated: a conflict said so, or the object is gone."""
        self._written.pop(key, None)


def _version(document: Document) -> str:
    return str((document.get("metadata") or {}).get("resourceVersion", ""))


def _reached(observed: Document, written: Document) -> bool:
    """True if `observed` is `written` or later."""
    seen, ours = _version(observed), _version(written)
    if seen.isdecimal() and ours.isdecimal():
        return int(seen) >= int(ours)  # comparable since Kubernetes 1.35, and in every etcd before
    # Otherwise only equality can be told, and a recreated object is surely another.
    same = (observed.get("metadata") or {}).get("uid") == (written.get("metadata") or {}).get("uid")
    return seen == ours or not same
