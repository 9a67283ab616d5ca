"""Publications, and when nothing is written."""

import copy

from autowasm.errors import (
    AutoWasmError,
)
from tests.fakes.modulesource import sha256_of
from tests.parts import wat
from tests.unit.controller.reconciling.world import (
    EARTH,
    KEY,
    OTHER,
    WORLD,
    Process,
    World,
    kinds,
    sha,
)


async def test_publishes_what_was_fetched_then_says_so(world: World, process: Process) -> None:
    await process.apply()
    assert kinds(world) == ["envoyfilter", "status"]
    assert world.live == sha(WORLD)
    assert world.live in process.store
    assert world.status["phase"] == "Synced"
    assert world.status["module"]["sha256"] == sha(WORLD)
    assert [world.condition(kind)[0] for kind in ("Fetched", "Published", "Ready")] == ["True"] * 3
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    assert world.recorded_events == [
        ("Normal", "Synced", f"nothing → sha256:{sha(WORLD)[:12]} ({world.status['module']['image']})")
    ]  # fmt: skip
    labels = {"phase": "Synced"}
    assert process.metrics.registry.get_sample_value("autowasm_autowasms", labels) == 1


async def test_a_new_module_is_not_published_where_no_sidecar_could_fetch_it(
    world: World, process: Process
) -> None:
    world.service_problem = AutoWasmError("Service a/b does not exist", reason="ServiceNotFound")
    await process.apply()
    assert world.live is None
    assert world.status["phase"] == "Failed"
    assert world.condition("Fetched") == ("True", "Fetched")
    assert world.condition("Published") == ("False", "ServiceNotFound")
    assert world.condition("Ready") == ("False", "ServiceNotFound")
    world.service_problem = None
    await process.settle()
    assert world.live == sha(WORLD)
    assert world.status["phase"] == "Synced"
    assert kinds(world).count("envoyfilter") == 1


async def test_what_is_in_place_stays_while_no_sidecar_could_fetch_another(
    world: World, process: Process
) -> None:
    await process.apply()
    live = copy.deepcopy(world.publisher.envoyfilters[KEY])
    world.service_problem = AutoWasmError("Service a/b does not exist", reason="ServiceNotFound")
    await process.apply(image=OTHER)
    assert world.publisher.envoyfilters[KEY] == live
    assert world.status["phase"] == "Degraded"
    assert "is still in place" in world.status["message"]
    assert world.condition("Published") == ("True", "Published")
    assert world.condition("Ready") == ("False", "ServiceNotFound")
    assert process.published.is_known(sha256_of(wat.header_filter(WORLD)))
    world.service_problem = None
    await process.settle()
    assert world.live == sha(EARTH)
    assert world.status["phase"] == "Synced"


async def test_nothing_is_written_when_nothing_changed(world: World, process: Process) -> None:
    await process.apply()
    world.publisher.writes.clear()
    world.registry.steps.clear()
    for _ in range(3):
        await process.settle()
    await process.apply()
    assert not world.publisher.writes
    assert not world.registry.steps


async def test_changed_source_rolls_out(world: World, process: Process) -> None:
    await process.apply()
    await process.apply(image=OTHER)
    assert world.live == sha(EARTH)
    assert [entry["sha256"] for entry in world.status["history"]] == [sha(EARTH), sha(WORLD)]
    assert world.recorded_events[-1][2].startswith(
        f"sha256:{sha(WORLD)[:12]} → sha256:{sha(EARTH)[:12]}"
    )


async def test_times_stay_while_the_module_does(world: World, process: Process) -> None:
    await process.apply()
    before = world.status
    process.reconciler._now = lambda: "2030-01-01T00:00:00Z"
    await process.apply(rootID="changed")
    assert world.status["observedGeneration"] == 2
    assert world.status["module"]["fetchedAt"] == before["module"]["fetchedAt"]
    times = [condition["lastTransitionTime"] for condition in world.status["conditions"]]
    assert times == ["2026-01-01T00:00:00Z"] * 3
