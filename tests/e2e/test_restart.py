"""A restart is not a rollout, and a failure never affects a running filter (ADR 7)."""

import asyncio

from tests.e2e.conftest import Scene, SceneMaker
from tests.parts import wat


async def test_killed_and_restarted_with_the_registry_down_it_serves_the_same_and_writes_nothing(
    scene: Scene,
) -> None:
    scene.wasmer.apply(scene.autowasm(await scene.push_header("world")))
    await scene.load.wait_for("world")
    await scene.wasmer.wait_phase("test", "Synced")
    written = _files(scene)

    await scene.registry.stop()
    async with scene.load.steady() as report:
        await scene.wasmer.process.kill()
        await scene.wasmer.start()
        fresh = await scene.another_envoy("second")
        await asyncio.sleep(0.3)  # also some answers of the second Envoy: both share the port

    assert report.failed == 0, str(report)
    assert (await fresh.stats("wasm.remote_load_fetch_successes")).popitem()[1] >= 1
    assert _files(scene) == written
    assert (await scene.wasmer.wait_phase("test", "Synced"))["phase"] == "Synced"


async def test_moved_tag_is_not_rolled_out_by_a_restart(scene: Scene) -> None:
    image = await scene.push("stable", wat.header_filter("world"))
    scene.wasmer.apply(scene.autowasm(image))
    await scene.load.wait_for("world")
    await scene.wasmer.wait_phase("test", "Synced")
    await scene.push("stable", wat.header_filter("earth"))

    await scene.wasmer.process.kill()
    await scene.wasmer.start()

    await scene.wasmer.wait_phase("test", "Synced")
    await scene.load.wait_for("world")
    document = scene.autowasm(image)
    document["metadata"]["annotations"] = {"wasm.tcm.io/refresh": "1"}
    scene.wasmer.apply(document)
    await scene.load.wait_for("earth")
    status = await scene.wasmer.wait_status("test", lambda found: found.get("refresh") == "1")
    assert status["phase"] == "Synced"


async def test_broken_config_file_keeps_the_filter_even_over_a_restart(scene: Scene) -> None:
    scene.wasmer.apply(scene.autowasm(await scene.push_header("world")))
    await scene.load.wait_for("world")
    await scene.wasmer.wait_phase("test", "Synced")

    async with scene.load.steady() as report:
        (scene.wasmer.config / "test.yaml").write_text(
            "apiVersion: wasm.tcm.io/v1alpha1\nkind: Aut"
        )
        await scene.wasmer.process.kill()
        await scene.wasmer.start()
        status = await scene.wasmer.wait_phase("test", "Degraded")
        assert "test.yaml" in status["message"]

    assert report.failed == 0, str(report)


async def test_going_back_to_an_earlier_source_needs_no_registry(scene: Scene) -> None:
    world, earth = await scene.push_header("world"), await scene.push_header("earth")
    for image, value in ((world, "world"), (earth, "earth")):
        scene.wasmer.apply(scene.autowasm(image))
        await scene.load.wait_for(value)
    await scene.wasmer.wait_phase("test", "Synced")
    await scene.registry.stop()

    scene.wasmer.apply(scene.autowasm(world))

    await scene.load.wait_for("world")


async def test_registry_that_is_down_degrades_a_change_and_heals_by_itself(scene: Scene) -> None:
    scene.wasmer.apply(scene.autowasm(await scene.push_header("world")))
    await scene.load.wait_for("world")
    earth = await scene.push_header("earth")
    await scene.registry.stop()

    async with scene.load.steady() as report:
        scene.wasmer.apply(scene.autowasm(earth))
        status = await scene.wasmer.wait_phase("test", "Degraded")
        assert scene.registry.host in status["message"]
        await scene.registry.start()
        await scene.load.wait_for("earth", timeout=60)

    assert report.failed == 0, str(report)


async def test_private_image_is_pulled_with_the_secret_of_the_directory(
    make_scene: SceneMaker,
) -> None:
    scene = await make_scene(users={"alice": "s3cret"})
    file = scene.directory / "hello.wasm"
    file.write_bytes(wat.header_filter("world"))
    from tests.parts import wasmer  # noqa: PLC0415

    image = scene.image("v1")
    await wasmer.wasmc(scene.directory).run(
        "push", image, "-f", str(file), "--username", "alice", "--password-stdin", stdin=b"s3cret"
    )
    document = scene.autowasm(image)
    document["spec"]["secret"] = "pull"

    scene.wasmer.apply(document)
    status = await scene.wasmer.wait_phase("test", "Failed")
    assert "pull" in status["message"]

    config = (
        f'{{"auths": {{"{scene.registry.host}": {{"username": "alice", "password": "s3cret"}}}}}}'
    )
    scene.wasmer.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": "pull", "namespace": "default"},
            "stringData": {".dockerconfigjson": config},
        }
    )
    await scene.load.wait_for("world")
    log = await asyncio.to_thread(scene.wasmer.process.log.read_text)
    assert "s3cret" not in log


def _files(scene: Scene) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every file that wasmer wrote for Envoy and for users."""
    root = scene.wasmer.directory / "envoy"
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*.yaml"))
    }
