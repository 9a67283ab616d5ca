"""When a tag is resolved afresh: the annotation, the pull policy, polls."""

from autowasm.api.v1alpha1 import RegistrySource, Source
from autowasm.artifacts.source import FetchRequest
from autowasm.errors import (
    SourceDenied,
)
from tests.fakes.autowasms import IMAGE, document
from tests.parts import wat
from tests.unit.controller.reconciling.world import DOWN, EARTH, WORLD, Process, World, kinds, sha


async def test_refresh_annotation_resolves_afresh_once(world: World, process: Process) -> None:
    await process.apply()
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    await process.apply()
    assert world.live == sha(WORLD)
    for _ in range(2):
        await process.apply(metadata={"annotations": {"wasm.tcm.io/refresh": "now"}})
        assert world.live == sha(EARTH)
    assert world.status["refresh"] == "now"
    assert world.registry.count("resolve") == 2


async def test_refresh_that_fails_stays_wanted(world: World, process: Process) -> None:
    await process.apply()
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    world.registry.failures["resolve"] = DOWN
    world.objects.apply(document(metadata={"annotations": {"wasm.tcm.io/refresh": "now"}}))
    await process.until("Degraded")
    assert world.live == sha(WORLD)
    world.registry.failures.clear()
    await process.until("Synced")
    assert world.live == sha(EARTH)


async def test_always_asks_at_a_change_and_not_at_a_restart(world: World) -> None:
    async with world.process() as process:
        await process.apply(pullPolicy="Always")
        world.registry.add(IMAGE, wat.header_filter(EARTH))
    async with world.process() as process:
        await process.settle()
        assert world.live == sha(WORLD)
        await process.apply(pullPolicy="Always", rootID="changed")
        assert world.live == sha(EARTH)


async def test_always_with_a_broken_secret_does_not_pretend_to_have_asked(
    world: World, process: Process
) -> None:
    world.secrets.login("default", "pull", "a:b", host="registry.example")
    await process.apply(pullPolicy="Always")
    await process.apply(pullPolicy="Always", spec={"secret": "pull"})
    await process.settle()
    assert world.status["phase"] == "Degraded"
    assert world.condition("Fetched") == ("False", "SecretInvalid")


async def test_what_a_poll_found_goes_the_way_of_a_change(world: World, process: Process) -> None:
    await process.apply()
    before = world.live
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    world.polls.record = await process.fetcher.fetch(
        FetchRequest("default", Source(registry=RegistrySource(IMAGE)))
    )
    world.publisher.writes.clear()
    await process.settle()
    assert kinds(world) == ["envoyfilter", "status"]
    assert world.live == sha(EARTH)
    assert world.status["phase"] == "Synced"
    assert world.status["history"][0]["sha256"] == sha(EARTH)
    assert world.polls.told[-1] == world.polls.record
    message = world.recorded_events[-1][2]
    assert message.startswith(f"sha256:{str(before)[:12]} → sha256:{sha(EARTH)[:12]}")


async def test_what_a_poll_found_is_not_used_against_a_pin(world: World, process: Process) -> None:
    await process.apply()
    world.registry.add(IMAGE, wat.header_filter(EARTH))
    world.polls.record = await process.fetcher.fetch(
        FetchRequest("default", Source(registry=RegistrySource(IMAGE)))
    )
    await process.apply(sha256=sha(WORLD))
    assert world.live == sha(WORLD)


async def test_a_refused_poll_degrades_and_leaves_what_is_published(
    world: World, process: Process
) -> None:
    await process.apply()
    world.polls.refused = SourceDenied("no more")
    world.publisher.writes.clear()
    await process.settle()
    await process.settle()
    assert kinds(world) == ["status"], "told once"
    assert world.status["phase"] == "Degraded"
    assert "still in place" in world.status["message"]
    assert world.live == sha(WORLD)
    world.polls.refused = None
    await process.settle()
    assert world.status["phase"] == "Synced"
