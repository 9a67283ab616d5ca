"""The shared control plane: one wasmer at a time, no leftovers of the previous test, and waits that end when an object changes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.clusterfixtures import PrivateInstallation
from tests.parts import wat
from tests.parts.controlplane import ControlPlane
from tests.parts.installation import Installation, autowasms, envoyfilters

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]


async def _publish(installation: Installation, namespace: str) -> None:
    image = await installation.push("plane", wat.header_filter("plane"))
    await installation.apply(installation.autowasm(image, namespace=namespace))
    await installation.wait_phase("Synced", namespace=namespace)


async def test_private_installation_finds_nothing_of_the_shared_one_and_runs_alone(
    control_plane: ControlPlane,
    installation: Installation,
    namespace: str,
    private_installation: PrivateInstallation,
    tmp_path: Path,
) -> None:
    await _publish(installation, namespace)
    async with private_installation(tmp_path, arguments=("--allow-mesh-wide",)) as private:
        assert not installation.wasmer.process.alive
        assert not await control_plane.cluster.client.exists(autowasms(namespace, "test"))
        assert not await control_plane.cluster.client.exists(envoyfilters(namespace, "test"))
        with pytest.raises(RuntimeError, match="private"):
            await control_plane.installation()
        await private.add_pull_secret(namespace)
        await _publish(private, namespace)
    again = await control_plane.installation()
    assert again.wasmer.process.alive
    await again.add_pull_secret(namespace)
    await _publish(again, namespace)


async def test_parts_stopped_or_changed_by_a_test_are_restored_for_the_next(
    control_plane: ControlPlane, installation: Installation, namespace: str
) -> None:
    process = installation.wasmer.process
    before = list(process.command)
    installation.may_die = True
    await process.kill()
    process.command = [*before, "--unknown"]
    await installation.registry.stop()
    await control_plane.cluster.stop_controller_manager()
    found = await control_plane.installation()
    assert found is installation
    assert process.command == before
    assert not found.may_die
    await _publish(found, namespace)
    await control_plane.cluster.request("DELETE", autowasms(namespace, "test"))
    await found.wait_gone(envoyfilters(namespace, "test"))  # by the controller manager


async def test_a_wait_ends_when_the_object_appears_changes_and_goes(
    control_plane: ControlPlane,
) -> None:
    client, namespace = control_plane.cluster.client, await control_plane.add_namespace()
    path = f"/api/v1/namespaces/{namespace}/configmaps/one"
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "one", "namespace": namespace},
        "data": {"a": "1"},
    }
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(client.wait_for(path))
        await client.apply(document)
    assert waiting.result()["data"] == {"a": "1"}

    def changed(found: dict[str, Any] | None) -> bool:
        return found is not None and found["data"] == {"a": "2"}

    async with asyncio.TaskGroup() as group:
        group.create_task(client.wait_object(path, changed))
        await client.apply({**document, "data": {"a": "2"}})
    async with asyncio.TaskGroup() as group:
        group.create_task(client.wait_gone(path))
        await client.delete(path)
    with pytest.raises(TimeoutError, match=r"configmaps/one after 0\.5 s: null"):
        await client.wait_for(path, timeout=0.5)
