"""ClusterPublisher without the Lease: no request leaves the process. The rest of it is tested on a real API server."""

from typing import Any, cast

import pytest

from autowasm.controller.publishing.overlay import WriteOverlay
from autowasm.controller.publishing.publisher import ClusterPublisher
from autowasm.kube.client import KubeClient
from autowasm.kube.leadership import NotLeading, Tenure
from autowasm.kube.resources import ObjectKey
from tests.fakes.autowasms import document

KEY = ObjectKey("default", "test")


class CountingClient:
    """Answers a write with its body."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    async def request(self, method: str, path: str, *, body: dict[str, Any]) -> bytearray:
        self.requests.append(method)
        return bytearray(b'{"metadata": {"resourceVersion": "2"}}')


def _envoyfilter(*, version: str = "", patches: tuple[str, ...] = ()) -> dict[str, Any]:
    owner = {
        "apiVersion": "wasm.tcm.io/v1alpha1",
        "kind": "AutoWasm",
        "name": "test",
        "uid": "u",
        "controller": True,
    }
    metadata: dict[str, Any] = {"name": "test", "namespace": "default", "ownerReferences": [owner]}
    if version:
        metadata |= {"resourceVersion": version, "uid": "e"}
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": metadata,
        "spec": {"configPatches": list(patches)},
    }


@pytest.mark.parametrize("leading", [True, False])
@pytest.mark.parametrize("write", ["create", "replace", "status"])
async def test_only_a_leader_sends_a_write(write: str, leading: bool) -> None:
    client, tenure = CountingClient(), Tenure(lambda _: None)
    tenure.extend(1e12)
    if not leading:
        tenure._until = 0.0  # frozen past its end; nobody has noticed yet
    owner = document(metadata={"uid": "u", "resourceVersion": "1"})
    stored = {KEY: _envoyfilter(version="1")} if write == "replace" else {}
    publisher = ClusterPublisher(
        cast("KubeClient", client),
        autowasms=WriteOverlay(lambda _: owner),
        envoyfilters=WriteOverlay(stored.get),
        leadership=tenure,
    )

    async def act() -> None:
        if write == "status":
            await publisher.write_status(KEY, owner, {"phase": "Synced"})
        else:
            await publisher.publish(KEY, owner, _envoyfilter(patches=("x",)))

    if leading:
        await act()
        assert len(client.requests) == 1
        return
    with pytest.raises(NotLeading):
        await act()
    assert client.requests == []
