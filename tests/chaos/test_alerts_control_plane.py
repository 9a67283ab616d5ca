"""The alerts and panels that need an API server: a real one that freezes, and one that stops."""

import asyncio
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.chaos import alerting
from tests.parts import wat
from tests.parts.installation import Installation, installed_without_istiod
from tests.parts.kubernetes import kubernetes
from tests.parts.prometheus import Prometheus, prometheus
from tests.parts.wasmer import SLOW_LEASE

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


async def test_alerts_and_panels_of_the_control_plane(tmp_path: Path) -> None:
    # A leader that cannot renew its Lease aborts its writes: they must hang for longer than the alert's threshold before that.
    async with (
        kubernetes(tmp_path / "kubernetes") as cluster,
        installed_without_istiod(cluster, tmp_path, arguments=SLOW_LEASE) as installation,
        prometheus(tmp_path / "prometheus", rules=alerting.quick_rules(least=2.0)) as watcher,
    ):
        begin = time.time()
        await watcher.scrape("wasmer", installation.wasmer.admin)
        image = await installation.push("v1", wat.header_filter("v1"))
        await installation.apply(*(installation.autowasm(image, name=f"n{n}") for n in range(20)))
        await installation.wait_phase("Synced", name="n19")
        await _add_pod(installation)
        while not await watcher.value("sum(autowasm_leader)"):
            await asyncio.sleep(0.5)
        await _roll_out_in_vain(installation, image, watcher)
        await _freeze_the_api(installation, image, watcher)
        alerts = ("AutoWasmNoLeader", "AutoWasmWatchSilent")
        async with alerting.again_and_again(partial(_touch, installation), 1):
            await watcher.wait_resolved(*alerts, "AutoWasmWorkerStuck")
        await cluster.stop_api()
        await watcher.wait_firing(*alerts)
        await cluster.start_api()
        # The rule's ten minutes are ten seconds here, and bookmarks still come every minute, each watch at its own time.
        async with alerting.again_and_again(partial(_touch, installation), 1):
            await watcher.wait_resolved(*alerts)
        end = time.time()
        missing = await alerting.without_data(watcher, begin, end)
        assert not {name for name in missing if name.startswith(alerting.CLUSTER_PANELS)}


async def _roll_out_in_vain(installation: Installation, image: str, watcher: Prometheus) -> None:
    """No sidecar answers on the statistics port: the step waits until its deadline, and the rollout is aborted."""
    document = installation.autowasm(image, name="rolled")
    document["spec"]["rollout"] = {"steps": [1], "pause": "1s", "deadline": "1m"}
    await installation.apply(document)
    await watcher.wait_firing("AutoWasmRolloutWaiting")
    await watcher.wait_firing("AutoWasmRolloutFailed", timeout=120)
    # The median of the time in a step needs two scrapes with a change between them.
    document["spec"]["rollout"]["onUnknown"] = "Continue"
    await installation.apply(document)
    await installation.wait_phase("Synced", name="rolled", timeout=60)
    await watcher.wait_resolved("AutoWasmRolloutWaiting", "AutoWasmRolloutFailed")


async def _freeze_the_api(installation: Installation, image: str, watcher: Prometheus) -> None:
    """The API server accepts requests but answers none, while many writes are due."""
    many = [installation.autowasm(image, name=f"m{number}") for number in range(100)]
    api = installation.cluster.api.pid
    before = await installation.wasmer.metric("autowasm_workqueue_adds_total")
    applying = asyncio.create_task(installation.apply(*many), name="apply")
    async with asyncio.timeout(60):
        while await installation.wasmer.metric("autowasm_workqueue_adds_total") < before + 20:
            await asyncio.sleep(0.02)
    os.killpg(api, signal.SIGSTOP)
    try:
        await watcher.wait_firing("AutoWasmWorkerStuck")
    finally:
        os.killpg(api, signal.SIGCONT)
        await asyncio.gather(applying, return_exceptions=True)


async def _touch(installation: Installation) -> None:
    """Change an object of each watched resource."""
    now = f"example.com/touched={time.time()}"
    for kind, name in (
        ("autowasm", "n0"),
        ("envoyfilter", "n0"),
        ("pod", "details"),
        ("namespace", "default"),
    ):
        await installation.kubectl.run("annotate", "--overwrite", kind, name, now)


async def _add_pod(installation: Installation) -> None:
    """A Pod that the AutoWasms match, with a sidecar that does not run."""
    pods = "/api/v1/namespaces/default/pods"
    containers = [{"name": name, "image": "x"} for name in ("main", "istio-proxy")]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "details", "labels": {"app": "details"}},
        "spec": {"containers": containers, "automountServiceAccountToken": False},
    }
    created = await installation.cluster.request("POST", pods, body=pod)
    ready = [{"type": "Ready", "status": "True"}]
    status = {"phase": "Running", "podIP": "10.1.2.3", "conditions": ready}
    path = f"{pods}/details/status"
    await installation.cluster.request("PUT", path, body={**created, "status": status})
