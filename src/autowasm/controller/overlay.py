"""WriteOverlay: what we wrote, until the informer shows it.

An informer is milliseconds behind our own writes; reading only it, a reconcile right after a write would write again, or
meet a conflict. Not a cache of reads. Invariant: what is shown is never older than our last write, and never newer than
what the API server has stored.
"""

from collections.abc import Callable, Mapping
from typing import Any

from autowasm.kube.resources import ObjectKey

Document = Mapping[str, Any]


class WriteOverlay:
    """Over the store of one resource; `stored` reads that."""

    def __init__(self, stored: Callable[[ObjectKey], Document | None]) -> None:
        self._stored = stored
        self._written: dict[ObjectKey, Document] = {}

    def get(self, key: ObjectKey) -> Document | None:
        """The object as we last wrote or saw it."""
        stored, written = self._stored(key), self._written.get(key)
        return stored if written is None else written

    def wrote(self, key: ObjectKey, document: Document) -> None:
        """The answer of a write that was accepted."""
        if _same_version(document, self._stored(key)):
            self._written.pop(key, None)
        else:
            self._written[key] = document

    def observed(self, key: ObjectKey, document: Document | None) -> bool:
        """The informer shows a state of the object (None: it is gone).

        True if that is older than what we wrote, or just that: nobody need look. Drops what we wrote once it is passed.
        """
        written = self._written.get(key)
        if written is None:
            return False
        if document is None:
            del self._written[key]
            return False
        if _reached(document, written):
            del self._written[key]
            return _same_version(document, written)
        return True

    def forget(self, key: ObjectKey) -> None:
        """What we wrote is known to be outdated: a conflict said so."""
        self._written.pop(key, None)


def _version(document: Document | None) -> str:
    return str(((document or {}).get("metadata") or {}).get("resourceVersion", ""))


def _same_version(one: Document, other: Document | None) -> bool:
    return _version(one) == _version(other)


def _reached(observed: Document, written: Document) -> bool:
    """True if `observed` is `written` or later. A recreated object (another uid) is later."""
    if (observed.get("metadata") or {}).get("uid") != (written.get("metadata") or {}).get("uid"):
        return True
    seen, ours = _version(observed), _version(written)
    if seen.isdecimal() and ours.isdecimal():
        return int(seen) >= int(ours)  # comparable since Kubernetes 1.35, and in every etcd before
    return seen == ours
