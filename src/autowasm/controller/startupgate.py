"""StartupGate: when a new replica becomes ready (ADR 15).

Ready means that each module that an Envoy must fetch is stored or one fetch of it was tried, or that the start-up deadline has
passed. It is not a health check. Invariant: an open gate stays open, so a registry that fails later never makes a replica
unready.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

from autowasm.kube.resources import ObjectKey


class StartupGate:
    """Calls `report` with the readiness of this replica, and with the reason."""

    def __init__(self, report: Callable[[bool, str], None] = lambda _ok, _why: None) -> None:
        self._pending: dict[ObjectKey, None] | None = None
        """In order: the report names the first ones."""
        self._report = report
        self._opened = asyncio.Event()

    def expect(self, keys: Iterable[ObjectKey]) -> None:
        """Everything was read: wait for these keys."""
        if self._opened.is_set():  # after the deadline, nothing makes the replica unready
            return
        self._pending = dict.fromkeys(sorted(keys))
        self._update()

    def is_pending(self, key: ObjectKey) -> bool:
        """Whether the gate waits for this key."""
        return self._pending is not None and key in self._pending

    def settled(self, key: ObjectKey) -> None:
        """The modules that the key has published are stored, or one fetch of each was tried."""
        if self._pending and key in self._pending:
            del self._pending[key]
            self._update()

    async def run(self, deadline: float) -> None:
        """Open after `deadline` seconds at the latest, then return."""
        try:
            async with asyncio.timeout(deadline):
                await self._opened.wait()
        except TimeoutError:
            self._pending = {}
            self._update(f"start-up deadline of {deadline:g} s passed")

    def _update(self, why: str = "") -> None:
        if self._pending:
            count = len(self._pending)
            subject = "1 AutoWasm is" if count == 1 else f"{count} AutoWasms are"
            examples = ", ".join(str(key) for key in islice(self._pending, 3))
            self._report(False, f"{subject} not reconciled yet ({examples})")
        elif not self._opened.is_set():
            self._opened.set()
            self._report(True, why)
