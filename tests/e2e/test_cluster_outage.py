"""The API server stops and returns while objects change: afterwards the cluster is in the same state as without the outage."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from tests.clusterfixtures import PrivateInstallation
from tests.parts import wire
from tests.parts.controlplane import ControlPlane
from tests.parts.expected import ExpectedObjects, expected_objects
from tests.parts.installation import Installation

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

OBJECTS = 20
"""Five times as many as wasmer has workers."""
CHANGERS = 4
CHANGES = 60
"""Rounds before the API server stops, and after it has returned; and as many as possible in between."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outage(
    private_installation: PrivateInstallation, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    """An installation of its own: other tests could not use the shared one meanwhile."""
    async with private_installation(tmp_path_factory.mktemp("outage")) as installation:
        yield installation


@pytest_asyncio.fixture(loop_scope="session")
async def objects(control_plane: ControlPlane, outage: Installation) -> ExpectedObjects:
    """None yet, in a namespace of their own."""
    namespace = await control_plane.add_namespace("outage")
    await outage.add_pull_secret(namespace)
    return await expected_objects(outage, namespace)


@dataclass
class _Asked:
    """The responses to a sidecar and to the kubelet."""

    good: int = 0
    bad: list[str] = field(default_factory=list)

    async def reach(self, good: int) -> None:
        """Wait until this many answers were good, or one was not."""
        async with asyncio.timeout(60):
            while self.good < good and not self.bad:
                await asyncio.sleep(0.02)


async def _ask(
    installation: Installation, digests: list[str], asked: _Asked, stop: asyncio.Event
) -> None:
    """Continuously fetch blobs like an Envoy, and request the probe like the kubelet."""
    server = installation.wasmer
    urls = [f"http://{server.host}/wasm/{digest}" for digest in digests]
    urls.append(f"http://{server.admin}/readyz")
    while not stop.is_set():
        for url in urls:
            answer = await wire.get(url)
            if answer.status == 200:
                asked.good += 1
            else:
                asked.bad.append(f"{url}: {answer.status} {answer.body[:200]!r}")
        await asyncio.sleep(0.05)


async def test_converges_after_a_restart_of_the_api_server_and_serves_meanwhile(
    outage: Installation, objects: ExpectedObjects
) -> None:
    cluster = outage.cluster
    for number in range(OBJECTS):
        await objects.put(f"f{number}", number % 2)
    await objects.wait_converged()
    asked, stop = _Asked(), asyncio.Event()
    digests = [digest for _, digest in objects.modules[:2]]
    asking = asyncio.create_task(_ask(outage, digests, asked, stop))

    async def change() -> None:
        for number in range(OBJECTS):
            await objects.put(f"f{number}", (number + 1) % 2, port=9081 + number)

    try:
        changing = asyncio.create_task(change())
        await cluster.stop_api()
        await asked.reach(asked.good + 30)  # while the API server is down
        await cluster.start_api()
        await changing
        await objects.wait_converged()
    finally:
        stop.set()
        await asking
    assert asked.bad == []
    assert asked.good > 30


async def test_random_changes_across_a_restart_of_the_api_server_converge(
    outage: Installation, objects: ExpectedObjects
) -> None:
    seed = random.randrange(1_000_000)
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    names = [f"f{number}" for number in range(3 * OBJECTS)]
    changes, back = 0, 0

    async def change(own: list[str]) -> None:
        nonlocal changes
        while not restarted.is_set() or changes < back + CHANGES:
            name = rng.choice(own)
            if name in objects.wanted and rng.random() < 0.3:
                await objects.delete(name)
            else:
                await objects.put(name, rng.randrange(3), port=rng.randrange(9000, 9010))
            changes += 1
            if changes >= CHANGES:
                begin.set()
            await asyncio.sleep(rng.random() * 0.05)

    begin, restarted = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for part in range(CHANGERS):
            group.create_task(change(names[part::CHANGERS]))
        await begin.wait()
        await outage.cluster.stop_api()
        await outage.cluster.start_api()
        back = changes
        restarted.set()
    await objects.wait_converged()
    assert changes >= 2 * CHANGES
    print(f"{changes} changes, {back} of them before the API server was back")
