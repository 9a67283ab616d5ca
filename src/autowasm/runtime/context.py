"""SharedResources: the resources that all parts of the process share: settings, thread pools, metrics, the blob store, the task group.

Invariant: a part may use them until the exit stack is left, and owns none of them.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from autowasm.blobs.store import BlobStore
from autowasm.net.pools import Pools
from autowasm.settings import Settings
from autowasm.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class SharedResources:
    """One per process."""

    settings: Settings
    pools: Pools
    metrics: Metrics
    store: BlobStore
    """Open."""
    tasks: asyncio.TaskGroup
    """Owns every task."""
    stack: AsyncExitStack
    """Callbacks that are pushed here run in reverse order after the last task has ended."""
