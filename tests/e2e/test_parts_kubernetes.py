"""The real control plane starts, authorizes, collects garbage, and survives a stop of the API server."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.parts.controlplane import READER, ControlPlane
from tests.parts.kubernetes import ApiError, kubernetes


def config_map(name: str, *, owner: dict[str, object] | None = None) -> dict[str, object]:
    metadata = {"name": name, "ownerReferences": [owner] if owner else []}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(600)
async def test_the_control_plane_decides_collects_and_survives_a_stop(
    control_plane: ControlPlane,
) -> None:
    cluster, kubectl = control_plane.cluster, control_plane.kubectl
    team = await control_plane.add_namespace()
    maps = f"/api/v1/namespaces/{team}/configmaps"
    with pytest.raises(ApiError) as refused:
        await cluster.request("GET", maps, user=READER)
    assert refused.value.status == 403

    owner = (await cluster.request("POST", maps, body=config_map("owner")))["metadata"]
    reference: dict[str, object] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["uid"],
    }
    await cluster.request("POST", maps, body=config_map("owned", owner=reference))

    await cluster.stop_api()
    with pytest.raises(ConnectionRefusedError):
        await cluster.request("GET", maps)
    await cluster.start_api()

    version = json.loads((await kubectl.run("version", "-o", "json")).stdout)
    assert version["serverVersion"]["gitVersion"] == "v1.36.3"
    await kubectl.run("delete", "configmap", "owner", "-n", team)
    async with asyncio.timeout(
        300
    ):  # the garbage collector reconnects to a restarted API server after a while
        while "owned" in (await kubectl.run("get", "configmaps", "-n", team)).stdout:
            await asyncio.sleep(0.1)

    text = await asyncio.to_thread(cluster.audit_log.read_text)
    lines = [
        line for line in text.splitlines() if team in line
    ]  # other clients write objects that cannot be decoded
    verbs = {(entry["user"].get("username"), entry["verb"]) for entry in map(json.loads, lines)}
    assert (READER, "list") in verbs
    assert ("admin", "create") in verbs


async def test_without_the_controller_manager_a_pod_needs_no_service_account(
    tmp_path: Path,
) -> None:
    async with kubernetes(tmp_path, controller_manager=False) as cluster:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "one", "labels": {"app": "details"}},
            "spec": {"containers": [{"name": "main", "image": "example.com/none"}]},
        }
        await cluster.wait_for("/api/v1/namespaces/default")
        created = await cluster.request("POST", "/api/v1/namespaces/default/pods", body=pod)
        assert created["status"]["phase"] == "Pending"
