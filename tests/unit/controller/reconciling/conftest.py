"""A reconciler for each test, ended with it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autowasm.telemetry.metrics import Metrics
from tests.unit.controller.reconciling.cluster import Process, ReconciledCluster


@pytest.fixture
def cluster(tmp_path: Path) -> ReconciledCluster:
    return ReconciledCluster(tmp_path / "cache")


@pytest.fixture
async def process(cluster: ReconciledCluster, metrics: Metrics) -> AsyncIterator[Process]:
    async with cluster.process(metrics=metrics) as process:
        yield process
