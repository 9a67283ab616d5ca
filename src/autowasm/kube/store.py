"""client-go's Store: the objects of one resource by key, as one writer, the reflector, says; everybody reads.

Not a copy-on-read store: objects are frozen values (or documents that nobody changes), and reads return them themselves.
It has no indices (client-go's Indexer): `PodMatcher` and `PodIndex` are handlers that keep what they need. Invariant: nobody
hears of a change that was none.
"""

from collections.abc import Iterator, Mapping, ValuesView
from typing import Generic, Literal, NamedTuple, TypeVar

from autowasm.kube.resources import ObjectKey

T = TypeVar("T")


class Delta(NamedTuple, Generic[T]):
    """One difference between what was stored and what is. `old` is None for `added`, `new` for `deleted`."""

    type: Literal["added", "updated", "deleted"]
    key: ObjectKey
    old: T | None
    new: T | None


class ObjectStore(Generic[T]):
    """What there is of one resource."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, T] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._objects

    def __iter__(self) -> Iterator[ObjectKey]:
        return iter(self._objects)

    def get(self, key: ObjectKey) -> T | None:
        """The object, None if there is none."""
        return self._objects.get(key)

    def keys(self) -> list[ObjectKey]:
        """All keys, as they are now."""
        return list(self._objects)

    def values(self) -> ValuesView[T]:
        """All objects. Do not await while iterating."""
        return self._objects.values()

    def upsert(self, key: ObjectKey, new: T) -> Delta[T] | None:
        """Store the object. None if an equal one was stored: nobody need hear of it."""
        old = self._objects.get(key)
        if old is not None and old == new:
            return None
        self._objects[key] = new
        return Delta("added" if old is None else "updated", key, old, new)

    def delete(self, key: ObjectKey) -> Delta[T] | None:
        """Drop the object. None if there was none."""
        old = self._objects.get(key)
        if old is None:
            return None
        del self._objects[key]
        return Delta("deleted", key, old, None)

    def replace(self, objects: Mapping[ObjectKey, T]) -> Iterator[Delta[T]]:
        """Make the store equal to `objects`, one difference at a time, as the iterator is driven.

        What vanished while we were not looking comes as `deleted`, with the last known object. It is lazy so that
        the caller can let the loop run in between; nobody else may write until it is exhausted.
        """
        for key in [key for key in self._objects if key not in objects]:
            if (delta := self.delete(key)) is not None:
                yield delta
        for key, new in objects.items():
            if (delta := self.upsert(key, new)) is not None:
                yield delta
