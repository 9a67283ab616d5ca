"""The API server stops, hangs or is slow, or a status is wrong: published modules remain correct, and new proxies get them."""

import asyncio
import copy

import pytest

from tests.chaos.checks import Audited, unharmed
from tests.chaos.newcomer import newcomer
from tests.parts.faults.proxy import Delay, Hang, Mode, Pass, Refuse
from tests.parts.fleet import LEASE_SECONDS, Fleet
from tests.parts.installation import Document, autowasms

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

DOWN_SECONDS = 60


def _all(fleet: Fleet, mode: Mode) -> None:
    for proxy in fleet.api:
        proxy.mode = mode


def _refuse(fleet: Fleet) -> None:
    _all(fleet, Refuse())
    for proxy in fleet.api:
        proxy.cut_all()


@pytest.mark.chaos
async def test_api_server_down_for_a_minute_and_a_replica_restarted_meanwhile(mesh: Fleet) -> None:
    replica = await mesh.follower()
    async with unharmed(mesh):
        _refuse(mesh)
        ends = asyncio.get_running_loop().time() + DOWN_SECONDS
        await mesh.kill(replica)
        starting = asyncio.create_task(replica.start(timeout=DOWN_SECONDS + 90))
        await mesh.apply("data")
        async with newcomer(mesh, row="down"):
            await asyncio.sleep(max(0, ends - asyncio.get_running_loop().time()))
        assert all(proxy.counters.refused for proxy in mesh.api), "the fault had an effect"
        assert await mesh.problems(), "nobody could publish the change"
        _all(mesh, Pass())
        await starting
        mesh.absent.clear()
        await mesh.leader()
        await mesh.settled()


async def test_api_server_takes_seconds_for_each_answer(mesh: Fleet) -> None:
    before = [proxy.counters.delayed for proxy in mesh.api]
    async with unharmed(mesh):
        _all(mesh, Delay(1.0))  # of each direction
        async with newcomer(mesh, row="slow"):
            await mesh.apply("data")
            await asyncio.sleep(LEASE_SECONDS)
        _all(mesh, Pass())
        await mesh.leader()
        await mesh.settled()
    delayed = [proxy.counters.delayed for proxy in mesh.api]
    assert all(now > then for now, then in zip(delayed, before, strict=True)), (
        "the fault had an effect"
    )


async def test_connections_to_the_api_server_freeze_without_a_close(mesh: Fleet) -> None:
    leader = await mesh.leader()
    frozen = mesh.api[mesh.replicas.index(leader)]
    async with unharmed(mesh):
        frozen.mode = Hang()
        successor = await mesh.leader(other_than=leader)
        assert successor is not leader
        async with newcomer(mesh, row="frozen"):
            await mesh.publish("data")
        assert frozen.counters.hung, "the fault had an effect"
        frozen.mode = Pass()
        await mesh.settled()


async def test_forged_status_is_reverted_and_changes_no_envoyfilter(mesh: Fleet) -> None:
    audited = await Audited.begin(mesh)
    found = await mesh.installation.get("data")
    true = copy.deepcopy(found["status"]["module"])
    async with unharmed(mesh):
        # A patch of this field only: wasmer may write the status meanwhile.
        body = {"status": {"module": {"sha256": "ab" * 32}}}
        path = autowasms("default", "data", subresource="status")
        taken = await mesh.cluster.request("PATCH", path, body=body)
        assert taken["status"]["module"]["sha256"] == "ab" * 32, "the fault had an effect"

        async def reverted() -> Document | None:
            live = await mesh.installation.get("data")
            return live if live["status"]["module"] == true else None

        await mesh.installation.wait_until(reverted, timeout=90)
        async with newcomer(mesh, row="forged"):
            await mesh.settled()
    writes = await mesh.installation.writes(audited.since)
    assert [one for one in writes if one.resource == "envoyfilters"] == []
