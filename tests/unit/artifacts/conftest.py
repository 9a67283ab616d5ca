"""A fetcher over a fake registry and a real store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from autowasm.artifacts.fetcher import ArtifactFetcher
from autowasm.artifacts.peers import Peers
from autowasm.artifacts.source import FetchRequest
from autowasm.blobs.store import BlobStore
from autowasm.limits import FetchLimits
from autowasm.net.pools import Pools
from autowasm.settings import Settings
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import IMAGE, autowasm
from tests.fakes.modulesource import FakeSource
from tests.fakes.pullsecrets import FakeSecrets
from tests.parts import wat


@dataclass
class FetchingReplica:
    """A fetcher with its store, and the registry and the pull secrets that it reads."""

    fetcher: ArtifactFetcher
    registry: FakeSource
    secrets: FakeSecrets
    store: BlobStore
    metrics: Metrics

    def request(
        self, image: str = IMAGE, *, namespace: str = "default", **fields: object
    ) -> FetchRequest:
        """For an image, by the AutoWasm of the namespace."""
        request = FetchRequest(namespace=namespace, source=autowasm(image=image).spec.filter.source)
        return replace(request, **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def modules() -> Callable[[str], bytes]:
    """A good module that adds the header `hello` with this value."""
    return wat.header_filter


@pytest.fixture
async def replica(tmp_path: Path, metrics: Metrics) -> AsyncIterator[FetchingReplica]:
    """CircuitBreakers open after two failures."""
    async with fetching_replica(tmp_path, metrics) as replica:
        yield replica


@asynccontextmanager
async def fetching_replica(
    directory: Path,
    metrics: Metrics,
    *,
    peers: Callable[[BlobStore], Peers] | None = None,
) -> AsyncIterator[FetchingReplica]:
    limits = FetchLimits(breaker_failures=2)
    settings = Settings(cache_dir=directory, fetch=limits)
    registry, secrets = FakeSource(), FakeSecrets()
    async with AsyncExitStack() as stack:
        pools = stack.enter_context(Pools())
        store = await stack.enter_async_context(BlobStore(directory, pools=pools, metrics=metrics))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        fetcher = ArtifactFetcher(
            settings=settings,
            store=store,
            sources={"registry": registry},
            secrets=secrets,
            pools=pools,
            metrics=metrics,
            tasks=tasks,
            peers=peers(store) if peers is not None else None,
        )
        yield FetchingReplica(fetcher, registry, secrets, store, metrics)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # of a test that failed: it must not hang as well
