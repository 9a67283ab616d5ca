"""A filter is added, changed and removed under load, on each supported Envoy: no request is lost."""

import asyncio

import pytest

from tests.e2e.conftest import Scene, SceneMaker
from tests.parts import pypi, wat
from tests.parts.faults.proxy import Pass, Refuse


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_adding_changing_and_removing_a_filter_loses_no_request(
    make_scene: SceneMaker, version: str
) -> None:
    scene = await make_scene(version=version)
    world, earth = await scene.push_header("world"), await scene.push_header("earth")

    async with scene.plain_load.steady() as adding:
        scene.wasmer.apply(scene.autowasm(world))
        await scene.load.wait_for("world")
    assert adding.failed == 0, str(adding)

    async with scene.load.steady() as changing:
        await asyncio.sleep(0.3)  # a load before the change
        scene.wasmer.apply(scene.autowasm(earth))
        await scene.load.wait_for("earth")
        await asyncio.sleep(0.5)  # and after it
    assert changing.failed == 0, str(changing)
    assert set(changing.by_value) == {"world", "earth"}

    async with scene.plain_load.steady() as removing:
        await asyncio.to_thread(scene.wasmer.delete, "test")
        await scene.load.wait_for(None)
    assert removing.failed == 0, str(removing)
    await scene.wasmer.wait_gone("test")
    assert (await scene.envoy.server_info()).epoch == 0


async def test_new_module_under_an_unchanged_vm_id_runs(scene: Scene) -> None:
    """With the vmId of the spec, Envoy would continue to run the old module."""
    scene.wasmer.apply(scene.autowasm(await scene.push_header("world"), vmID="shared"))
    await scene.load.wait_for("world")

    scene.wasmer.apply(scene.autowasm(await scene.push_header("earth"), vmID="shared"))

    await scene.load.wait_for("earth")


async def test_two_autowasms_with_one_vm_id_and_different_modules_both_run(scene: Scene) -> None:
    first = scene.autowasm(await scene.push_header("world"), vmID="shared")
    other = await scene.push("other", wat.header_filter("second", name="other"))
    scene.wasmer.apply(first)
    scene.wasmer.apply(scene.autowasm(other, name="other", vmID="shared"))

    await scene.load.wait_for("world")
    await type(scene.load)(scene.load.host, header="other").wait_for("second")
    await scene.load.wait_for("world")


async def test_unreachable_blob_port_during_a_rollout_costs_no_request(scene: Scene) -> None:
    scene.wasmer.apply(scene.autowasm(await scene.push_header("world")))
    await scene.load.wait_for("world")
    earth = await scene.push_header("earth")

    async with scene.load.steady() as report:
        scene.proxy.mode = Refuse()
        scene.proxy.cut_all()
        scene.wasmer.apply(scene.autowasm(earth))
        await scene.wasmer.wait_phase("test", "Synced")
        async with asyncio.timeout(20):
            while scene.proxy.counters.refused < 2:
                await asyncio.sleep(0.02)
        scene.proxy.mode = Pass()
        await scene.load.wait_for("earth", timeout=40)

    assert report.failed == 0, str(report)


async def test_module_of_exactly_envoys_limit_is_served_and_one_byte_more_is_refused(
    scene: Scene,
) -> None:
    limit = 33_554_432
    largest = await scene.push("largest", wat.padded(wat.header_filter("huge"), size=limit))
    scene.wasmer.apply(scene.autowasm(largest))
    await scene.load.wait_for("huge")

    over = await scene.push(
        "over", wat.padded(wat.header_filter("over"), size=limit + 1), "--force"
    )
    scene.wasmer.apply(scene.autowasm(over))

    status = await scene.wasmer.wait_phase("test", "Degraded")
    assert "33554432" in status["message"] or "32 MiB" in status["message"]
    await scene.load.wait_for("huge")
