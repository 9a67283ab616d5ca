"""Judging modules holds the event loop for less than 5 ms of processor time, and takes little memory."""

import itertools
from pathlib import Path

from autowasm.limits import MIB, PreflightLimits
from autowasm.sandbox.plugin import Plugin
from autowasm.telemetry.metrics import Metrics
from tests.fakes import preflights
from tests.fakes.preflights import filter_text
from tests.hostile.looptime import longest_iteration
from tests.parts import wat

MOST = 0.005


async def test_judging_leaves_the_loop_free(tmp_path: Path, metrics: Metrics) -> None:
    numbers = itertools.count()
    module = wat.padded(wat.compile_text(filter_text()), size=3 * MIB)
    async with preflights.running(
        tmp_path, metrics, limits=PreflightLimits(run_seconds=60.0)
    ) as judge:
        path, sha256 = judge.store(module)  # here, because it hashes the module

        async def work() -> None:
            plugin = Plugin(configuration=str(next(numbers)).encode().ljust(MIB))
            await judge.preflight.judge(namespace="a", module=path, sha256=sha256, plugin=plugin)

        await work()
        assert await longest_iteration(work, below=MOST) < MOST
