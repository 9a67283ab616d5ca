"""client-go's Indexer: objects by key, with named indices over them.

Not a copy-on-read store: objects are frozen values (or documents that nobody changes), and reads return them themselves.
One writer, the reflector; everybody reads. Invariant: every index says exactly what its function says of the objects
that are stored now.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, ValuesView
from typing import Generic, Literal, NamedTuple, TypeVar

from autowasm.kube.resources import ObjectKey

T = TypeVar("T")

IndexFunc = Callable[[T], Iterable[Hashable]]
"""The values under which an object is found in an index. Must never raise."""

_NOTHING: frozenset[ObjectKey] = frozenset()


class Delta(NamedTuple, Generic[T]):
    """One difference between what was stored and what is. `old` is None for `added`, `new` for `deleted`."""

    type: Literal["added", "updated", "deleted"]
    key: ObjectKey
    old: T | None
    new: T | None


class Indexer(Generic[T]):
    """The store of one resource."""

    def __init__(self, indexers: Mapping[str, IndexFunc[T]] | None = None) -> None:
        self._objects: dict[ObjectKey, T] = {}
        self._functions = dict(indexers or {})
        self._indices: dict[str, dict[Hashable, set[ObjectKey]]] = {
            name: {} for name in self._functions
        }

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

    def index_keys(self, index: str, value: Hashable) -> Iterable[ObjectKey]:
        """Keys of the objects that have `value` in the named index."""
        return self._indices[index].get(value, _NOTHING)

    def by_index(self, index: str, value: Hashable) -> list[T]:
        """The objects that have `value` in the named index."""
        return [self._objects[key] for key in self.index_keys(index, value)]

    def index_values(self, index: str) -> Iterable[Hashable]:
        """All values of the named index that at least one object has."""
        return self._indices[index].keys()

    def upsert(self, key: ObjectKey, new: T) -> Delta[T] | None:
        """Store the object. None if an equal one was stored: nobody need hear of it."""
        old = self._objects.get(key)
        if old is not None and old == new:
            return None
        self._reindex(key, old, new)
        self._objects[key] = new
        return Delta("added" if old is None else "updated", key, old, new)

    def delete(self, key: ObjectKey) -> Delta[T] | None:
        """Drop the object. None if there was none."""
        old = self._objects.get(key)
        if old is None:
            return None
        self._reindex(key, old, None)
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

    def _reindex(self, key: ObjectKey, old: T | None, new: T | None) -> None:
        for name, function in self._functions.items():
            index = self._indices[name]
            before = set(function(old)) if old is not None else set()
            after = set(function(new)) if new is not None else set()
            for value in before - after:
                keys = index[value]
                keys.discard(key)
                if not keys:
                    del index[value]
            for value in after - before:
                index.setdefault(value, set()).add(key)
