"""Three real replicas of `wasmer controller` on one API server: one writes, all serve, and nothing is written twice when any of them is lost."""

import asyncio
import hashlib
import itertools
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio

from tests.clusterfixtures import PrivateInstallation
from tests.parts import istio, ports, wat, wire
from tests.parts.audit import Entry
from tests.parts.installation import ACCOUNT, Document, Installation, autowasms, envoyfilters
from tests.parts.wasmer import Wasmer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

LEASE_DURATION = 3.0
TIMINGS = ("--lease-duration=3s", "--renew-deadline=2s", "--retry-period=400ms")
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{istio.ROOT_NAMESPACE}/leases/wasmer"
_POLL = 0.2
"""Seconds: an answer with all metrics takes a replica 10 ms."""


@dataclass
class Replicas:
    """Three of them; the installation's own is the first."""

    installation: Installation
    all: list[Wasmer]
    digests: list[str] = field(default_factory=list)
    published: Document = field(default_factory=dict)
    """The AutoWasm of the last publication."""
    _names: Iterator[int] = field(default_factory=itertools.count)

    async def lease(self) -> Document:
        spec: Document = (await self.installation.cluster.request("GET", LEASE))["spec"]
        return spec

    async def leaders(self) -> list[Wasmer]:
        """The replicas with the metric of the leader."""
        alive = [one for one in self.all if one.process.alive]
        values = [await one.metric("autowasm_leader") for one in alive]
        return [one for one, value in zip(alive, values, strict=True) if value == 1]

    async def leader(self, *, other_than: Wasmer | None = None, timeout: float = 20) -> Wasmer:
        async with asyncio.timeout(timeout):
            while True:
                leaders = [one for one in await self.leaders() if one is not other_than]
                if len(leaders) == 1:
                    return leaders[0]
                await asyncio.sleep(_POLL)

    async def publish(self, *, name: str = "") -> tuple[str, str]:
        """Create an AutoWasm; returns it and its digest once it is published."""
        name = name or f"filter-{next(self._names)}"
        module = wat.header_filter(f"{name}-{len(self.digests)}", name=name)
        image = await self.installation.push(f"{name}-{len(self.digests)}", module)
        digest = hashlib.sha256(module).hexdigest()
        await self.installation.apply(self.installation.autowasm(image, name=name))
        self.digests.append(digest)
        await self.installation.wait_envoyfilter(
            lambda found: f"/wasm/{digest}" in str(found), name=name
        )
        self.published = await self.installation.wait_phase("Synced", name=name)
        return name, digest

    async def assert_served(self, replicas: Sequence[Wasmer], digests: Sequence[str]) -> None:
        for replica, digest in itertools.product(replicas, digests):
            answer = await wire.request("GET", f"http://{replica.host}/wasm/{digest}", timeout=20)
            assert answer.status == 200, replica.directory.name
            assert hashlib.sha256(answer.body).hexdigest() == digest

    async def position(self) -> int:
        """The end of the audit log, once the earlier publications have been written in full."""
        if self.published:
            return await self.installation.logged(self.published)
        return await self.installation.audit.position()

    async def objects_written(self, since: int) -> list[Entry]:
        """Writes of AutoWasms and EnvoyFilters."""
        return [one for one in await self.installation.writes(since) if one.resource != "events"]

    async def leases_written(self, since: int) -> list[Entry]:
        writes = await self.installation.audit.writes(user=ACCOUNT, since=since)
        return [one for one in writes if one.resource == "leases" and one.code < 300]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def trio(
    private_installation: PrivateInstallation, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    directory = tmp_path_factory.mktemp("replicas")
    addresses = [ports.free_address() for _ in range(3)]
    one, two, three = (f"{each}:{ports.free_port(address=each)}" for each in addresses)
    # Each has the addresses of all, as from DNS: it must detect its own.
    arguments = [*TIMINGS, *(f"--peer=http://{host}" for host in (one, two, three))]
    async with AsyncExitStack() as stack:
        installation = await stack.enter_async_context(
            private_installation(directory, host=one, arguments=arguments)
        )
        installation.may_die = True
        others = [
            await stack.enter_async_context(
                installation.another(name, host=host, arguments=arguments)
            )
            for name, host in (("second", two), ("third", three))
        ]
        yield Replicas(installation, [installation.wasmer, *others])


@pytest_asyncio.fixture(loop_scope="session")
async def replicas(trio: Replicas) -> Replicas:
    """All three run, and one leads."""
    for replica in trio.all:
        if not replica.process.alive:
            await replica.start()
    await trio.leader()
    return trio


@contextmanager
def frozen(replica: Wasmer) -> Iterator[None]:
    os.kill(replica.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(replica.process.pid, signal.SIGCONT)


def _held(lease: Document) -> tuple[str, int]:
    return lease["holderIdentity"], lease["leaseTransitions"]


async def test_one_replica_leads_and_all_serve_its_modules(replicas: Replicas) -> None:
    for _ in range(3):
        await replicas.publish()
    leader = await replicas.leader()
    lease = await replicas.lease()
    assert re.fullmatch(r".+_[0-9a-f]{8}", lease["holderIdentity"])
    assert datetime.fromisoformat(lease["renewTime"]).utcoffset() is not None
    followers = [one for one in replicas.all if one is not leader]
    for follower in followers:  # before any request to them
        assert await follower.metric("autowasm_blobs") >= 3
    await replicas.assert_served(followers, replicas.digests)


async def test_killed_leader_is_followed_by_another_that_rewrites_nothing(
    replicas: Replicas,
) -> None:
    await replicas.publish()
    leader, before = await replicas.leader(), await replicas.lease()
    since = await replicas.position()
    await leader.process.kill()
    successor = await replicas.leader(other_than=leader)
    name, digest = await replicas.publish()
    lease = await replicas.lease()
    assert lease["holderIdentity"] != before["holderIdentity"]
    assert lease["leaseTransitions"] == before["leaseTransitions"] + 1
    written = await replicas.objects_written(since)
    assert {one.name for one in written} == {name}
    await replicas.assert_served([successor], [digest])
    await leader.start()
    await replicas.assert_served([leader], replicas.digests)
    assert {one.name for one in await replicas.objects_written(since)} == {name}


async def test_frozen_leader_changes_nothing_when_it_wakes(replicas: Replicas) -> None:
    name, _ = await replicas.publish()
    leader = await replicas.leader()
    holder = (await replicas.lease())["holderIdentity"]
    with frozen(leader):

        def is_anothers(found: Document | None) -> bool:
            return found is not None and found["spec"]["holderIdentity"] not in {"", holder}

        await replicas.installation.cluster.client.wait_object(LEASE, is_anothers)
        # The successor writes while the old leader sleeps, and still has work when the old leader wakes.
        _, digest = await replicas.publish(name=name)
        since = await replicas.position()
        lease = await replicas.lease()
    async with asyncio.timeout(20):
        while await leader.metric("autowasm_leader") != 0:
            await asyncio.sleep(_POLL)
    await asyncio.sleep(LEASE_DURATION)
    assert await replicas.objects_written(since) == []
    assert _held(await replicas.lease()) == _held(lease)
    assert [
        one for one in await replicas.leases_written(since)
        if one.request["spec"]["holderIdentity"] != lease["holderIdentity"]
    ] == []  # fmt: skip
    await replicas.assert_served(replicas.all, [digest])


async def test_rolling_update_hands_the_lease_over_and_rewrites_nothing(
    replicas: Replicas,
) -> None:
    await replicas.publish()
    since = await replicas.position()
    for replica in replicas.all:
        leading = replica in await replicas.leaders()
        before, stopping = await replicas.lease(), await replicas.position()
        await replica.process.stop(timeout=60)
        assert replica.process.returncode == 0
        if leading:
            await replicas.leader(other_than=replica)
            holders = [
                one.request["spec"]["holderIdentity"]
                for one in await replicas.leases_written(stopping)
            ]
            successor = (await replicas.lease())["holderIdentity"]
            assert successor != before["holderIdentity"]
            assert holders[holders.index(successor) - 1] == "", "released, not expired"
        await replicas.assert_served(
            [one for one in replicas.all if one is not replica], replicas.digests
        )
        await replica.start()
    assert await replicas.objects_written(since) == []
    releases = [
        one for one in await replicas.leases_written(since)
        if one.request["spec"]["holderIdentity"] == ""
    ]  # fmt: skip
    assert releases


async def test_object_deleted_without_a_leader_disappears_everywhere(
    replicas: Replicas,
) -> None:
    name, _ = await replicas.publish()
    leader = await replicas.leader()
    await leader.process.kill()
    await replicas.installation.cluster.client.delete(autowasms(name=name))
    await replicas.installation.wait_gone(envoyfilters(name=name))
    await replicas.leader(other_than=leader)
    await leader.start()


async def test_lease_that_is_deleted_leaves_one_leader(replicas: Replicas) -> None:
    await replicas.installation.cluster.request("DELETE", LEASE)
    await asyncio.sleep(LEASE_DURATION)
    await replicas.leader()
    await replicas.publish()


async def test_replicas_have_a_module_before_any_envoy_is_configured_with_it(
    replicas: Replicas,
) -> None:
    since = await replicas.position()
    name, digest = await replicas.publish()
    written = [one for one in await replicas.objects_written(since) if one.name == name]
    at = [one.resource for one in written].index("envoyfilters")
    status, envoyfilter = written[at - 1], written[at]
    assert status.resource == "autowasms/status"
    assert status.request["status"]["phase"] == "Fetching"
    assert status.request["status"]["module"]["sha256"] == digest
    leader = await replicas.leader()
    for follower in (one for one in replicas.all if one is not leader):
        stored = (follower.directory / f"cache/blobs/{digest}").stat()
        assert stored.st_ctime <= envoyfilter.received + 0.05


async def test_election_can_be_switched_off(tmp_path: Path, replicas: Replicas) -> None:
    for replica in replicas.all:
        await replica.process.stop()
    held = await replicas.lease()
    arguments = ("--no-leader-elect",)
    async with replicas.installation.another("alone", arguments=arguments) as alone:
        assert await alone.metric("autowasm_leader") == 1
        assert await replicas.lease() == held
