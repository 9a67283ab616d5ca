"""The other replicas cannot be reached, hang, send wrong bytes or send slowly: each replica serves the right modules, from the source if necessary."""

import asyncio

import pytest

from tests.chaos import neighbours
from tests.chaos.checks import unharmed
from tests.chaos.neighbours import FaultCase, copies, found_by_name, from_source, names_of
from tests.chaos.newcomer import newcomer
from tests.parts import wire
from tests.parts.faults.names import Failure, Names
from tests.parts.faults.proxy import Hang, Pass, Refuse
from tests.parts.fleet import REPLICAS, Fleet
from tests.parts.wasmer import Wasmer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

FAULT_CASES = [
    neighbours.UNREACHABLE,
    neighbours.HANGING,
    neighbours.DRIPPING,
    neighbours.LYING,
    neighbours.LONGER,
    neighbours.SHORTER,
]
FAILURES: list[Failure] = ["EAI_AGAIN", "EAI_NONAME", "hang"]


async def _restarted_empty(fleet: Fleet) -> Wasmer:
    """A follower that starts with an empty disk."""
    replica = await fleet.follower()
    await fleet.kill(replica)
    await fleet.lose_disk(replica)
    await fleet.start(replica)
    return replica


@pytest.mark.parametrize("case", FAULT_CASES, ids=str)
async def test_new_replica_with_an_empty_disk_fetches_from_the_source(
    mesh: Fleet, case: FaultCase
) -> None:
    """A replica that has its modules continues to serve; a change is published although no peer can copy it."""
    async with unharmed(mesh):
        async with case.lasting(mesh) as injected:
            # The source waits for the fault: wasmer also requests the module from it, and it may be faster than the
            # peers' wrong answers.
            mesh.registry_port.mode = Hang()
            starting = asyncio.create_task(_restarted_empty(mesh))
            async with asyncio.timeout(60):
                while not injected():
                    await asyncio.sleep(0.05)
            mesh.registry_port.mode = Pass()
            replica = await starting
            assert await copies(replica, "copied") == 0
            assert await from_source(replica) > 0
            assert await replica.metric("autowasm_blobs") >= len(mesh.wanted), "before asked"
            before = injected()
            async with newcomer(mesh, row=f"peers-{case}"):
                await mesh.publish("data")
            assert injected() > before, "the fault had an effect"
        await mesh.publish("data")


@pytest.mark.timeout(600)
async def test_new_replica_without_peers_and_source_serves_no_wrong_bytes(mesh: Fleet) -> None:
    """It is ready (after it has tried everything), answers 503 for now, and has all modules soon after the source has returned."""
    replica, digest = await mesh.follower(), mesh.wanted["data"]
    source = mesh.registry_port
    async with unharmed(mesh):
        async with neighbours.LYING.lasting(mesh) as injected:
            source.mode, refused = Refuse(), source.counters.refused
            source.cut_all()
            await mesh.kill(replica)
            await mesh.lose_disk(replica)
            await replica.start(timeout=60)  # and need not answer yet
            url = f"http://{replica.host}/wasm/{digest}"
            patience = {"x-envoy-expected-rq-timeout-ms": "1000"}
            answer = await wire.request("GET", url, headers=patience, timeout=30)
            assert answer.status == 503
            assert injected(), "the fault had an effect"
            assert source.counters.refused > refused, "the fault had an effect"
            assert await replica.metric("autowasm_blobs") == 0
            # Each query of this one takes 5 s, and the next one to query is chosen at random.
            async with newcomer(mesh, row="nothing", timeout=300):
                pass
            source.mode = Pass()
            async with asyncio.timeout(90):
                while await replica.metric("autowasm_blobs") < len(mesh.wanted):
                    await asyncio.sleep(0.1)
            assert await copies(replica, "copied") == 0
        mesh.absent.clear()
        await mesh.settled()


def _addresses(fleet: Fleet) -> list[str]:
    """The addresses of the three permanent replicas."""
    return [replica.host.rpartition(":")[0] for replica in fleet.replicas[:REPLICAS]]


async def _looked_up(names: Names, failure: Failure) -> None:
    """Wait for an effect of the fault: a lookup without addresses."""
    before = await asyncio.to_thread(names.lookups, failure)
    async with asyncio.timeout(90):
        while await asyncio.to_thread(names.lookups, failure) <= before:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("failure", FAILURES)
async def test_new_replica_that_cannot_find_its_peers_fetches_from_the_source(
    mesh: Fleet, failure: Failure
) -> None:
    row = f"cold-{failure.lower()}"
    names = names_of(mesh, row)
    await asyncio.to_thread(names.fail, failure)
    async with found_by_name(mesh, names, row) as replica, unharmed(mesh):
        assert await asyncio.to_thread(names.lookups, failure), "the fault had an effect"
        assert await from_source(replica) > 0
        assert await replica.metric("autowasm_blobs") >= len(mesh.wanted), "before asked"
        await mesh.publish("data")
        assert await copies(replica, "copied") == 0
        await asyncio.to_thread(names.lead_to, _addresses(mesh))
        before = await from_source(replica)
        async with asyncio.timeout(90):
            while not await asyncio.to_thread(names.lookups, "addresses"):
                await asyncio.sleep(0.1)
        await mesh.publish("data")
        assert await copies(replica, "copied") > 0, "they are found"
        assert await from_source(replica) == before


@pytest.mark.parametrize("failure", FAILURES)
async def test_replica_remembers_the_addresses_of_its_peers(mesh: Fleet, failure: Failure) -> None:
    row = f"warm-{failure.lower()}"
    names = names_of(mesh, row)
    await asyncio.to_thread(names.lead_to, _addresses(mesh))
    async with found_by_name(mesh, names, row) as replica, unharmed(mesh):
        assert await from_source(replica) == 0, "all is copied"
        await asyncio.to_thread(names.fail, failure)
        await _looked_up(names, failure)
        before = await copies(replica, "copied")
        async with newcomer(mesh, row=row):
            await mesh.publish("data")
        assert await copies(replica, "copied") > before
        assert await from_source(replica) == 0
        await asyncio.to_thread(names.lead_to, _addresses(mesh))
