"""A reconciler for each test, ended with it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autowasm.telemetry.metrics import Metrics
from tests.unit.controller.reconciling.world import Process, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "cache")


@pytest.fixture
async def process(world: World, metrics: Metrics) -> AsyncIterator[Process]:
    async with world.process(metrics=metrics) as process:
        yield process
