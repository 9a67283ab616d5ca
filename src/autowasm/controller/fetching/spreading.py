"""Spreading: waits, off the reconcile path, until the other replicas have a module that is about to be published (ADR 14).

Not the copying, which the others do once they read the record in the status. Invariant: nothing waits longer than `ASK` +
`WAIT` seconds: a replica that is gone holds up no rollout, and one that lacks the module fills it when it is asked.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from autowasm.controller.interfaces import Replicas
from autowasm.digest import Sha256Hex
from autowasm.kube.resources import ObjectKey

ASK: Final = 0.5
"""Seconds for "do you have it already?": the usual case after a failover, or where several objects share a module."""
WAIT: Final = 5.0


class Spread(Enum):
    """What is to be done next."""

    WAIT = "wait"
    """We tell when it is over."""
    TELL = "tell"
    """Let the others know the record, then ask again."""
    DONE = "done"


@dataclass(slots=True, eq=False)
class _Wait:
    sha256: Sha256Hex
    state: Spread = Spread.WAIT
    told: bool = False
    task: asyncio.Task[None] | None = None


class Spreading:
    """By object key. `on_change` is called with the key when it is worth another look."""

    def __init__(
        self,
        replicas: Replicas,
        *,
        tasks: asyncio.TaskGroup,
        on_change: Callable[[ObjectKey], None],
    ) -> None:
        self._replicas = replicas
        self._tasks = tasks
        self._on_change = on_change
        self._waits: dict[ObjectKey, _Wait] = {}

    def state(self, key: ObjectKey, sha256: Sha256Hex) -> Spread:
        """Whether the module of this object can be published."""
        if not self._replicas.known():
            return Spread.DONE
        wait = self._waits.get(key)
        if wait is None or wait.sha256 != sha256:
            self.forget(key)
            wait = self._waits[key] = _Wait(sha256)
            self._begin(key, wait, ASK)
        return wait.state

    def told(self, key: ObjectKey) -> None:
        """The others can read the record now."""
        wait = self._waits.get(key)
        if wait is not None and not wait.told:
            wait.told = True
            wait.state = Spread.WAIT
            self._begin(key, wait, WAIT)

    def forget(self, key: ObjectKey) -> None:
        """Published, or not wanted any more."""
        wait = self._waits.pop(key, None)
        if wait is not None and wait.task is not None:
            wait.task.cancel()

    def _begin(self, key: ObjectKey, wait: _Wait, timeout: float) -> None:
        wait.task = self._tasks.create_task(self._ask(key, wait, timeout), name=f"spread {key}")

    async def _ask(self, key: ObjectKey, wait: _Wait, timeout: float) -> None:
        everywhere = await self._replicas.wait_all_have(wait.sha256, timeout)
        wait.state = Spread.DONE if everywhere or wait.told else Spread.TELL
        wait.task = None
        self._on_change(key)
