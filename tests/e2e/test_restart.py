"""A restart is not a rollout, and a failure never affects a running filter (ADR 7)."""

import asyncio

from tests.e2e.conftest import Standalone, StandaloneStarter
from tests.parts import wat


async def test_killed_and_restarted_with_the_registry_down_it_serves_the_same_and_writes_nothing(
    standalone: Standalone,
) -> None:
    standalone.wasmer.apply(standalone.autowasm(await standalone.push_header("world")))
    await standalone.load.wait_for("world")
    await standalone.wasmer.wait_phase("test", "Synced")
    written = _files(standalone)

    await standalone.registry.stop()
    async with standalone.load.steady() as report:
        await standalone.wasmer.process.kill()
        await standalone.wasmer.start()
        fresh = await standalone.another_envoy("second")
        await asyncio.sleep(0.3)  # also some answers of the second Envoy: both share the port

    assert report.failed == 0, str(report)
    assert (await fresh.stats("wasm.remote_load_fetch_successes")).popitem()[1] >= 1
    assert _files(standalone) == written
    assert (await standalone.wasmer.wait_phase("test", "Synced"))["phase"] == "Synced"


async def test_moved_tag_is_not_rolled_out_by_a_restart(standalone: Standalone) -> None:
    image = await standalone.push("stable", wat.header_filter("world"))
    standalone.wasmer.apply(standalone.autowasm(image))
    await standalone.load.wait_for("world")
    await standalone.wasmer.wait_phase("test", "Synced")
    await standalone.push("stable", wat.header_filter("earth"))

    await standalone.wasmer.process.kill()
    await standalone.wasmer.start()

    await standalone.wasmer.wait_phase("test", "Synced")
    await standalone.load.wait_for("world")
    document = standalone.autowasm(image)
    document["metadata"]["annotations"] = {"wasm.tcm.io/refresh": "1"}
    standalone.wasmer.apply(document)
    await standalone.load.wait_for("earth")
    status = await standalone.wasmer.wait_status("test", lambda found: found.get("refresh") == "1")
    assert status["phase"] == "Synced"


async def test_broken_config_file_keeps_the_filter_even_over_a_restart(
    standalone: Standalone,
) -> None:
    standalone.wasmer.apply(standalone.autowasm(await standalone.push_header("world")))
    await standalone.load.wait_for("world")
    await standalone.wasmer.wait_phase("test", "Synced")

    async with standalone.load.steady() as report:
        (standalone.wasmer.config / "test.yaml").write_text(
            "apiVersion: wasm.tcm.io/v1alpha1\nkind: Aut"
        )
        await standalone.wasmer.process.kill()
        await standalone.wasmer.start()
        status = await standalone.wasmer.wait_phase("test", "Degraded")
        assert "test.yaml" in status["message"]

    assert report.failed == 0, str(report)


async def test_going_back_to_an_earlier_source_needs_no_registry(standalone: Standalone) -> None:
    world, earth = await standalone.push_header("world"), await standalone.push_header("earth")
    for image, value in ((world, "world"), (earth, "earth")):
        standalone.wasmer.apply(standalone.autowasm(image))
        await standalone.load.wait_for(value)
    await standalone.wasmer.wait_phase("test", "Synced")
    await standalone.registry.stop()

    standalone.wasmer.apply(standalone.autowasm(world))

    await standalone.load.wait_for("world")


async def test_registry_that_is_down_degrades_a_change_and_heals_by_itself(
    standalone: Standalone,
) -> None:
    standalone.wasmer.apply(standalone.autowasm(await standalone.push_header("world")))
    await standalone.load.wait_for("world")
    earth = await standalone.push_header("earth")
    await standalone.registry.stop()

    async with standalone.load.steady() as report:
        standalone.wasmer.apply(standalone.autowasm(earth))
        status = await standalone.wasmer.wait_phase("test", "Degraded")
        assert standalone.registry.host in status["message"]
        await standalone.registry.start()
        await standalone.load.wait_for("earth", timeout=60)

    assert report.failed == 0, str(report)


async def test_private_image_is_pulled_with_the_secret_of_the_directory(
    start_standalone: StandaloneStarter,
) -> None:
    standalone = await start_standalone(users={"alice": "s3cret"})
    file = standalone.directory / "hello.wasm"
    file.write_bytes(wat.header_filter("world"))
    from tests.parts import wasmer  # noqa: PLC0415

    image = standalone.image("v1")
    await wasmer.wasmc(standalone.directory).run(
        "push", image, "-f", str(file), "--username", "alice", "--password-stdin", stdin=b"s3cret"
    )
    document = standalone.autowasm(image)
    document["spec"]["secret"] = "pull"

    standalone.wasmer.apply(document)
    status = await standalone.wasmer.wait_phase("test", "Failed")
    assert "pull" in status["message"]

    config = f'{{"auths": {{"{standalone.registry.host}": {{"username": "alice", "password": "s3cret"}}}}}}'
    standalone.wasmer.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": "pull", "namespace": "default"},
            "stringData": {".dockerconfigjson": config},
        }
    )
    await standalone.load.wait_for("world")
    log = await asyncio.to_thread(standalone.wasmer.process.log.read_text)
    assert "s3cret" not in log


def _files(standalone: Standalone) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every file that wasmer wrote for Envoy and for users."""
    root = standalone.wasmer.directory / "envoy"
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*.yaml"))
    }
