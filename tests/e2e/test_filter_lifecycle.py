"""A filter is added, changed and removed under load, on each supported Envoy: no request is lost."""

import asyncio

import pytest

from tests.e2e.conftest import Standalone, StandaloneStarter
from tests.parts import pypi, wat
from tests.parts.faults.proxy import Pass, Refuse


@pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS)
async def test_adding_changing_and_removing_a_filter_loses_no_request(
    start_standalone: StandaloneStarter, version: str
) -> None:
    standalone = await start_standalone(version=version)
    world, earth = await standalone.push_header("world"), await standalone.push_header("earth")

    async with standalone.plain_load.steady() as adding:
        standalone.wasmer.apply(standalone.autowasm(world))
        await standalone.load.wait_for("world")
    assert adding.failed == 0, str(adding)

    async with standalone.load.steady() as changing:
        await changing.until("world", 20)
        standalone.wasmer.apply(standalone.autowasm(earth))
        await standalone.load.wait_for("earth")
        await changing.until("earth", 20)
    assert changing.failed == 0, str(changing)
    assert set(changing.by_value) == {"world", "earth"}

    async with standalone.plain_load.steady() as removing:
        await asyncio.to_thread(standalone.wasmer.delete, "test")
        await standalone.load.wait_for(None)
    assert removing.failed == 0, str(removing)
    await standalone.wasmer.wait_gone("test")
    assert (await standalone.envoy.server_info()).epoch == 0


async def test_new_module_under_an_unchanged_vm_id_runs(standalone: Standalone) -> None:
    """With the vmId of the spec, Envoy would continue to run the old module."""
    standalone.wasmer.apply(
        standalone.autowasm(await standalone.push_header("world"), vmID="shared")
    )
    await standalone.load.wait_for("world")

    standalone.wasmer.apply(
        standalone.autowasm(await standalone.push_header("earth"), vmID="shared")
    )

    await standalone.load.wait_for("earth")


async def test_two_autowasms_with_one_vm_id_and_different_modules_both_run(
    standalone: Standalone,
) -> None:
    first = standalone.autowasm(await standalone.push_header("world"), vmID="shared")
    other = await standalone.push("other", wat.header_filter("second", name="other"))
    standalone.wasmer.apply(first)
    standalone.wasmer.apply(standalone.autowasm(other, name="other", vmID="shared"))

    await standalone.load.wait_for("world")
    await type(standalone.load)(standalone.load.host, header="other").wait_for("second")
    await standalone.load.wait_for("world")


async def test_unreachable_blob_port_during_a_rollout_costs_no_request(
    standalone: Standalone,
) -> None:
    standalone.wasmer.apply(standalone.autowasm(await standalone.push_header("world")))
    await standalone.load.wait_for("world")
    earth = await standalone.push_header("earth")

    async with standalone.load.steady() as report:
        standalone.proxy.mode = Refuse()
        standalone.proxy.cut_all()
        standalone.wasmer.apply(standalone.autowasm(earth))
        await standalone.wasmer.wait_phase("test", "Synced")
        async with asyncio.timeout(20):
            while standalone.proxy.counters.refused < 2:
                await asyncio.sleep(0.02)
        standalone.proxy.mode = Pass()
        await standalone.load.wait_for("earth", timeout=40)

    assert report.failed == 0, str(report)


async def test_module_of_exactly_envoys_limit_is_served_and_one_byte_more_is_refused(
    standalone: Standalone,
) -> None:
    limit = 33_554_432
    largest = await standalone.push("largest", wat.padded(wat.header_filter("huge"), size=limit))
    standalone.wasmer.apply(standalone.autowasm(largest))
    await standalone.load.wait_for("huge")

    over = await standalone.push(
        "over", wat.padded(wat.header_filter("over"), size=limit + 1), "--force"
    )
    standalone.wasmer.apply(standalone.autowasm(over))

    status = await standalone.wasmer.wait_phase("test", "Degraded")
    assert "33554432" in status["message"] or "32 MiB" in status["message"]
    await standalone.load.wait_for("huge")
