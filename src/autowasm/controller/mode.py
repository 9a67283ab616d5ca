"""Mode: where objects and Secrets come from, and where what is made of them goes. The seam of the composition root."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from autowasm.artifacts.pullsecrets import SecretReader
from autowasm.controller.interfaces import AutoWasmLookup, Publisher
from autowasm.kube.resources import ObjectKey


class Mode(AutoWasmLookup, SecretReader, Protocol):
    """Where objects and Secrets come from, and where what is made of them goes: a cluster or a directory."""

    @property
    def publisher(self) -> Publisher:
        """Where EnvoyFilters and statuses go."""

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Return once everything that is there was read once. Raises UsageError."""

    def keys(self) -> frozenset[ObjectKey]:
        """All that has to be reconciled once at the start."""

    async def run(
        self, *, changed: Callable[[ObjectKey], None], secret_changed: Callable[[ObjectKey], None]
    ) -> None:
        """Tell of changes, for ever."""
