"""The line in which keys wait for a worker: first come, first served within a group, and the groups take turns.

Not the queue (`workqueue.py` keeps which key is wanted and which is worked on). Invariants: keys of one group leave in
the order in which they came; a key at the head of its group leaves after at most one key of each other group, so a
group with a thousand keys delays another group's key by one of them.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class FairLine(Generic[K]):
    """`group` names what shares its turns, for example a namespace; None: all keys are one group, a plain FIFO."""

    def __init__(self, group: Callable[[K], Hashable] | None = None) -> None:
        self._group = group
        self._groups: OrderedDict[Hashable, deque[K]] = OrderedDict()  # the next in turn first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, key: K) -> None:
        """Let the key wait behind its group."""
        group = self._group(key) if self._group is not None else None
        self._groups.setdefault(group, deque()).append(key)
        self._count += 1

    def pop(self) -> K:
        """The next key. Raises IndexError if there is none."""
        if not self._groups:
            raise IndexError("nothing waits")
        group, keys = next(iter(self._groups.items()))
        key = keys.popleft()
        self._count -= 1
        if keys:
            self._groups.move_to_end(group)
        else:
            # A group that comes back begins at the end: nothing is gained by coming one key at a time.
            del self._groups[group]
        return key

    def clear(self) -> None:
        """Forget all."""
        self._groups.clear()
        self._count = 0
