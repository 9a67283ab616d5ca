"""StartupGate: when a fresh replica may call itself ready (ADR 15).

A reconciler around the reconciler that only watches. Not a health check of what comes later: a registry that goes down
afterwards never makes a replica unready. Invariant: ready means that each digest which some Envoy was told to fetch is
here, or was tried once, or the start-up deadline has passed.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

from autowasm.kube.controller import Reconciler, Result
from autowasm.kube.resources import ObjectKey


class StartupGate:
    """Opens once every key that was given to `expect` is settled. `settled` is asked after each reconcile of such a key."""

    def __init__(
        self,
        reconciler: Reconciler[ObjectKey],
        *,
        settled: Callable[[ObjectKey], bool],
        report: Callable[[bool, str], None],
    ) -> None:
        self._reconciler = reconciler
        self._pending: dict[ObjectKey, None] | None = None
        """In order: the first ones are named."""
        self._settled = settled
        self._report = report
        self._opened = asyncio.Event()

    def expect(self, keys: Iterable[ObjectKey]) -> None:
        """What there is was read: wait for these."""
        if self._opened.is_set():  # what came after the deadline makes nobody unready again
            return
        self._pending = dict.fromkeys(sorted(keys))
        self._say()

    async def reconcile(self, key: ObjectKey, /) -> Result:
        """As the reconciler does."""
        result = await self._reconciler.reconcile(key)
        if self._pending and key in self._pending and self._settled(key):
            del self._pending[key]
            self._say()
        return result

    async def run(self, deadline: float) -> None:
        """Open at the latest after `deadline` seconds, then return."""
        try:
            async with asyncio.timeout(deadline):
                await self._opened.wait()
        except TimeoutError:
            self._pending = {}
            self._say(f"start-up deadline of {deadline:g} s passed")

    def _say(self, why: str = "") -> None:
        if self._pending:
            count = len(self._pending)
            examples = ", ".join(str(key) for key in islice(self._pending, 3))
            self._report(False, f"{count} published modules are not here yet ({examples})")
        elif not self._opened.is_set():
            self._opened.set()
            self._report(True, why)
