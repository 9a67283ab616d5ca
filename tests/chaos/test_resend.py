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
from tests.parts.fleet import Fleet, new_fleet
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
async def fleet(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    async with new_fleet(
        tmp_path_factory.mktemp("resend"),
        plane=control_plane,
        arguments=(f"--resend-after={RESEND_AFTER}s",),
        # Only one retry: a proxy's fetch fails within seconds, not after a minute.
        envoy=EnvoyFetch(retries=1),
    ) as fleet:
        await fleet.istiod.add_workload(
            "late", labels=LABELS, address=LATE, port=fleet.port, service=fleet.service
        )
        yield fleet


async def _add_pod(fleet: Fleet, name: str, *, started: float) -> None:
    """The proxy's Pod, as a kubelet would report it: connections from it come from 127.0.0.1 here."""
    path = "/api/v1/namespaces/default/pods"
    containers = [{"name": name, "image": "example.com/x:1"} for name in ("main", "istio-proxy")]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": LABELS},
        "spec": {"containers": containers},
    }
    found = await fleet.cluster.request("POST", path, body=pod)
    stamp = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    address = {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    status = {"phase": "Running", "startTime": stamp, **address}
    body = {**found, "status": {**found.get("status", {}), **status}}
    await fleet.cluster.request("PUT", f"{path}/{name}/status", body=body)


async def _has_given_up(fleet: Fleet) -> None:
    """The fault has an effect: the listener waits for the module until no retry is left, and then answers 503."""
    async with asyncio.timeout(90):
        while True:
            with suppress(OSError):
                if (await wire.get(f"http://{LATE}:{fleet.port}/")).status == 503:
                    return
            await asyncio.sleep(0.2)


def _resends(document: dict[str, object], digest: str) -> int:
    return envoyfilters.resend_count_of(document, digest)


async def test_proxy_started_during_an_outage_gets_its_module_after_it(fleet: Fleet) -> None:
    digest = await fleet.publish("late")
    for replica in fleet.replicas:
        await fleet.kill(replica)
    begun = time.time()
    directory = fleet.installation.directory / "late"
    async with sidecar(fleet.istiod, directory, name="late", labels=LABELS, address=LATE):
        await _add_pod(fleet, "late", started=begun)
        load = Load(f"{LATE}:{fleet.port}", header="hello")
        await _has_given_up(fleet)
        # The replicas do not treat a shorter absence as an outage.
        await asyncio.sleep(begun + ResendSettings().outage + 1 - time.time())
        for replica in fleet.replicas:
            await fleet.start(replica)
        await load.wait_for("late-1", timeout=60)
    live = await fleet.installation.envoyfilter("late")
    assert _resends(live, digest) == 1
    await fleet.installation.wait_event(reason="ModuleResent")
    # The next leader keeps the resend, and does not repeat it.
    audited = await Audited.begin(fleet)
    leader = await fleet.leader()
    await fleet.kill(leader)
    await fleet.leader(other_than=leader)
    await fleet.start(leader)
    await asyncio.sleep(RESEND_AFTER + 3)
    assert _resends(await fleet.installation.envoyfilter("late"), digest) == 1
    assert await audited.rewritten() == []
    await fleet.cluster.request(
        "DELETE", "/api/v1/namespaces/default/pods/late?gracePeriodSeconds=0"
    )


async def test_short_outage_writes_nothing(fleet: Fleet) -> None:
    await fleet.settled()
    since = await fleet.installation.audit.position()
    for replica in fleet.replicas:
        await fleet.kill(replica)
    for replica in fleet.replicas:
        await fleet.start(replica)
    await fleet.leader()
    await asyncio.sleep(RESEND_AFTER + 5)
    written = [
        one for one in await fleet.installation.writes(since) if one.resource == "envoyfilters"
    ]
    assert written == []
