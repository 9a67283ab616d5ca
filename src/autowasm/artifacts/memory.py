"""Bounded memory of a fetcher.

It holds no module bytes. Invariant: a forgotten entry costs a download, nothing else.
"""

from collections import OrderedDict
from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MAX_REMEMBERED: Final = 10_000
"""Entries of one memory; the oldest is dropped first."""


def keep(memory: OrderedDict[K, V], key: K, value: V) -> None:
    """Put the entry last, and drop the first if there are too many."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > MAX_REMEMBERED:
        memory.popitem(last=False)
