"""Ground: what every part of the process is built on.

Not the parts. Invariant: who is given it may use it until the stack is left, and owns none of it.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from autowasm.blobs.store import BlobStore
from autowasm.net.pools import Pools
from autowasm.settings import Settings
from autowasm.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Application:
    """One for a process."""

    settings: Settings
    pools: Pools
    metrics: Metrics
    store: BlobStore
    """Open."""
    tasks: asyncio.TaskGroup
    """Owns every task."""
    stack: AsyncExitStack
    """What is pushed here is closed after the last task has ended, in reverse."""
