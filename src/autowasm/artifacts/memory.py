"""What a fetcher remembers, bounded.

Not a cache of bytes. Invariant: forgetting an entry costs a download, nothing else.
"""

from collections import OrderedDict
from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MAX_REMEMBERED: Final = 10_000
"""Entries of one memory; the oldest goes first."""


def keep(memory: OrderedDict[K, V], key: K, value: V) -> None:
    """Put it last, and forget the first if there are too many."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > MAX_REMEMBERED:
        memory.popitem(last=False)
