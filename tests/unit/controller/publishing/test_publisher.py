"""ClusterPublisher without the Lease, and when the watch outruns an answer. The rest of it is tested on a real API server."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import pytest

from autowasm.api.envoyfilter import MANAGED_BY
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


class LateClient(CountingClient):
    """Answers after the watch has shown that the object is gone."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    async def request(self, method: str, path: str, *, body: dict[str, Any]) -> bytearray:
        answer = await super().request(method, path, body=body)
        self._meanwhile()
        return answer

    async def get(self, resource: object, key: ObjectKey) -> Mapping[str, Any]:
        self._meanwhile()
        return {
            **_envoyfilter(version="2"),
            "metadata": _envoyfilter(version="2")["metadata"] | {"labels": MANAGED_BY},
        }


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


@pytest.mark.parametrize("call", ["find", "create", "replace", "status"])
async def test_an_answer_of_before_the_deletion_is_not_shown(call: str) -> None:
    owner = document(metadata={"uid": "u", "resourceVersion": "1"})
    autowasms: dict[ObjectKey, Any] = {KEY: owner}
    envoyfilters = {KEY: _envoyfilter(version="1")} if call == "replace" else {}
    overlays = WriteOverlay(autowasms.get), WriteOverlay(envoyfilters.get)

    def both_go() -> None:
        for stored, overlay in zip((autowasms, envoyfilters), overlays, strict=True):
            stored.clear()
            overlay.observed(KEY, None)

    tenure = Tenure(lambda _: None)
    tenure.extend(1e12)
    publisher = ClusterPublisher(
        cast("KubeClient", LateClient(both_go)),
        autowasms=overlays[0],
        envoyfilters=overlays[1],
        leadership=tenure,
    )
    acts: dict[str, Callable[[], Awaitable[object]]] = {
        "find": lambda: publisher.find(KEY, owner),
        "create": lambda: publisher.publish(KEY, owner, _envoyfilter(patches=("x",))),
        "replace": lambda: publisher.publish(KEY, owner, _envoyfilter(patches=("x",))),
        "status": lambda: publisher.write_status(KEY, owner, {"phase": "Synced"}),
    }
    await acts[call]()
    assert [overlay.get(KEY) for overlay in overlays] == [None, None]
