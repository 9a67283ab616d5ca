"""One control plane for each file, with our resource in it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.manifests import documents
from tests.parts import clients
from tests.parts.clients import Client
from tests.parts.kubernetes import Cluster, kubernetes

# Otherwise pytest-asyncio's first question for the current loop makes one that nobody closes (Python 3.11 to 3.13).
asyncio.set_event_loop(None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A control plane that knows AutoWasms."""
    async with kubernetes(tmp_path_factory.mktemp("cluster")) as cluster:
        await cluster.wait_for("/api/v1/namespaces/default/serviceaccounts/default")
        client = await _kubectl(cluster)
        await client.run("apply", "-f", documents.CRD)
        await clients.crds_established(client, "autowasms.wasm.tcm.io")
        await _wait_until_explained(client)
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kubectl(cluster: Cluster) -> Client:
    """kubectl as the administrator."""
    return await _kubectl(cluster)


async def _kubectl(cluster: Cluster) -> Client:
    home = cluster.directory / "home"
    await asyncio.to_thread(Path.mkdir, home, exist_ok=True)
    return await clients.kubectl(home, kubeconfig=cluster.kubeconfig)


async def _wait_until_explained(client: Client) -> None:
    """The API server publishes a new resource's documentation some moments after the resource."""
    async with asyncio.timeout(30):
        while (await client.run("explain", "aw", check=False)).returncode:
            await asyncio.sleep(0.1)
