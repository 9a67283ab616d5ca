"""wasmer is down while a proxy needs a module: a sidecar that has used up its retries gets the module by a resend, and nothing else changes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from autowasm.api import envoyfilter as envoyfilters
from autowasm.settings import EnvoyFetch, ResendSettings
from tests.chaos.checks import Audited
from tests.parts import wire
from tests.parts.controlplane import ControlPlane
from tests.parts.fleet import Fleet, fleet
from tests.parts.istio import sidecar
from tests.parts.load import Load

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.chaos,
]

RESEND_AFTER = 8
LATE = "127.0.0.24"
LABELS = {"app": "late"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    async with fleet(
        tmp_path_factory.mktemp("resend"),
        plane=control_plane,
        arguments=(f"--resend-after={RESEND_AFTER}s",),
        # Only one retry: a proxy's fetch fails within seconds, not after a minute.
        envoy=EnvoyFetch(retries=1),
    ) as world:
        await world.istiod.add_workload(
            "late", labels=LABELS, address=LATE, port=world.port, service=world.service
        )
        yield world


async def _add_pod(world: Fleet, name: str, *, started: float) -> None:
    """The proxy's Pod, as a kubelet would report it: connections from it come from 127.0.0.1 here."""
    path = "/api/v1/namespaces/default/pods"
    containers = [{"name": name, "image": "example.com/x:1"} for name in ("main", "istio-proxy")]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": LABELS},
        "spec": {"containers": containers},
    }
    found = await world.cluster.request("POST", path, body=pod)
    stamp = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    address = {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    status = {"phase": "Running", "startTime": stamp, **address}
    body = {**found, "status": {**found.get("status", {}), **status}}
    await world.cluster.request("PUT", f"{path}/{name}/status", body=body)


async def _has_given_up(world: Fleet) -> None:
    """The fault has an effect: the listener waits for the module until no retry is left, and then answers 503."""
    async with asyncio.timeout(90):
        while True:
            with suppress(OSError):
                if (await wire.get(f"http://{LATE}:{world.port}/")).status == 503:
                    return
            await asyncio.sleep(0.2)


def _resends(document: dict[str, object], digest: str) -> int:
    return envoyfilters.resend_count_of(document, digest)


async def test_proxy_that_started_while_nobody_served_is_healed(world: Fleet) -> None:
    digest = await world.publish("late")
    for replica in world.replicas:
        await world.kill(replica)
    begun = time.time()
    directory = world.installation.directory / "late"
    async with sidecar(world.istiod, directory, name="late", labels=LABELS, address=LATE):
        await _add_pod(world, "late", started=begun)
        load = Load(f"{LATE}:{world.port}", header="hello")
        await _has_given_up(world)
        # The replicas do not treat a shorter absence as an outage.
        await asyncio.sleep(begun + ResendSettings().outage + 1 - time.time())
        for replica in world.replicas:
            await world.start(replica)
        await load.wait_for("late-1", timeout=60)
    live = await world.installation.envoyfilter("late")
    assert _resends(live, digest) == 1
    events = await world.cluster.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events")
    assert "ModuleResent" in {event["reason"] for event in events["items"]}
    # The next leader keeps the resend, and does not repeat it.
    audited = await Audited.begin(world)
    leader = await world.leader()
    await world.kill(leader)
    await world.leader(other_than=leader)
    await world.start(leader)
    await asyncio.sleep(RESEND_AFTER + 3)
    assert _resends(await world.installation.envoyfilter("late"), digest) == 1
    assert await audited.rewritten() == []
    await world.cluster.request(
        "DELETE", "/api/v1/namespaces/default/pods/late?gracePeriodSeconds=0"
    )


async def test_short_outage_writes_nothing(world: Fleet) -> None:
    await world.settled()
    since = await world.installation.audit.position()
    for replica in world.replicas:
        await world.kill(replica)
    for replica in world.replicas:
        await world.start(replica)
    await world.leader()
    await asyncio.sleep(RESEND_AFTER + 5)
    written = [
        one for one in await world.installation.writes(since) if one.resource == "envoyfilters"
    ]
    assert written == []
