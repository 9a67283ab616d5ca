"""The end of the control loop of a single replica: it reconciles and leads no more."""

import asyncio
import contextlib
from pathlib import Path

import pytest
import yaml

from autowasm.blobs.store import BlobStore
from autowasm.controller.reconciler import AutoWasmReconciler
from autowasm.controller.sourcepolicy import PolicyFile
from autowasm.kube.controller import Result
from autowasm.kube.leaderelection import while_leading
from autowasm.kube.resources import ObjectKey
from autowasm.kube.workqueue import WorkQueue
from autowasm.net.pools import Pools
from autowasm.runtime import manager as module
from autowasm.runtime.context import SharedResources
from autowasm.runtime.datapath import open_data_path
from autowasm.runtime.manager import Manager
from autowasm.runtime.modes import choose_mode
from autowasm.server.admin import Health
from autowasm.settings import PreflightMode, Settings, Standalone
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import document


class Hanging:
    """Work that ends only when it is cancelled."""

    def __init__(self) -> None:
        self.has_begun, self.is_cancelled = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.is_cancelled.set()
            raise


class _Over(Exception):
    """Ends the tasks of a test."""


async def resign(directory: Path, *, work: Hanging, reconcile: Hanging) -> None:
    """Resign while a reconcile and the leader's `work` hang. Raises _Over in a group."""
    config, envoy = directory / "config", directory / "envoy"
    config.mkdir()
    envoy.mkdir()
    (config / "autowasm.yaml").write_text(yaml.safe_dump(document()))
    settings = Settings(
        cache_dir=directory / "cache",
        standalone=Standalone(config, envoy),
        preflight=PreflightMode.OFF,
    )
    metrics, queue = Metrics(), WorkQueue[ObjectKey]()
    with Pools() as pools:
        async with (
            contextlib.AsyncExitStack() as stack,
            BlobStore(settings.cache_dir, pools=pools, metrics=metrics) as store,
            asyncio.TaskGroup() as tasks,
        ):
            shared = SharedResources(settings, pools, metrics, store, tasks, stack)
            policy = PolicyFile(None, limits=settings.limits, pools=pools)
            chosen = await choose_mode(
                shared, busy=bool, on_leading=lambda _: None, warn=lambda *_: None
            )
            data = await open_data_path(shared, chosen, policy=policy)
            manager = Manager(shared, chosen, data, policy=policy, queue=queue, health=Health())
            tasks.create_task(manager.run())
            tasks.create_task(while_leading(chosen.leadership, work.run))
            async with asyncio.timeout(30):
                await reconcile.has_begun.wait()
                await work.has_begun.wait()
                queue.shut_down(drain=False)
                await manager.resign()
                assert reconcile.is_cancelled.is_set()
                assert not chosen.leadership.is_leading
                await work.is_cancelled.wait()
            raise _Over


async def test_reconcile_and_leader_work_that_do_not_end_are_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, reconcile = Hanging(), Hanging()

    async def hang(_: AutoWasmReconciler, _key: ObjectKey) -> Result:
        await reconcile.run()
        return Result()

    monkeypatch.setattr(AutoWasmReconciler, "reconcile", hang)
    monkeypatch.setattr(module, "_WORKERS_END", 0.01)
    with pytest.raises(ExceptionGroup) as raised:
        await resign(tmp_path, work=work, reconcile=reconcile)
    assert [type(error) for error in raised.value.exceptions] == [_Over]
