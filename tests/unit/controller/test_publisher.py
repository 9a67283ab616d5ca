"""ClusterPublisher without the Lease, and when the watch outruns an answer. The rest of it is tested on a real API server."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import pytest

from autowasm.api.envoyfilter import MANAGED_BY, render
from autowasm.api.validation import parse
from autowasm.controller.mutationcache import MutationCache
from autowasm.controller.publisher import ClusterPublisher
from autowasm.errors import AutoWasmError
from autowasm.kube import errors
from autowasm.kube.client import KubeClient
from autowasm.kube.controller import TerminalError
from autowasm.kube.leaderelection import NotLeading, Tenure
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import document
from tests.parts import explained

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
        tenure._until = 0.0  # frozen past its end; not detected yet
    owner = document(metadata={"uid": "u", "resourceVersion": "1"})
    stored = {KEY: _envoyfilter(version="1")} if write == "replace" else {}
    publisher = ClusterPublisher(
        cast("KubeClient", client),
        autowasms=MutationCache(lambda _: owner),
        envoyfilters=MutationCache(stored.get),
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
async def test_late_answer_does_not_restore_a_deleted_object(call: str) -> None:
    owner = document(metadata={"uid": "u", "resourceVersion": "1"})
    autowasms: dict[ObjectKey, Any] = {KEY: owner}
    envoyfilters = {KEY: _envoyfilter(version="1")} if call == "replace" else {}
    overlays = MutationCache(autowasms.get), MutationCache(envoyfilters.get)

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


class RefusingClient(CountingClient):
    """Answers each call with this error."""

    def __init__(self, error: errors.ApiError) -> None:
        super().__init__()
        self._error = error

    async def request(self, method: str, path: str, *, body: dict[str, Any]) -> bytearray:
        await super().request(method, path, body=body)
        raise self._error


class HeldClient(CountingClient):
    """Its EnvoyFilter is this."""

    def __init__(self, live: Mapping[str, Any]) -> None:
        super().__init__()
        self._live = live

    async def get(self, resource: object, key: ObjectKey) -> Mapping[str, Any]:
        return self._live


def _publisher(
    client: object, stored: Mapping[ObjectKey, Any], owner: Mapping[str, Any]
) -> tuple[ClusterPublisher, MutationCache, list[tuple[Any, ...]]]:
    """With its EnvoyFilters and its Events."""
    told: list[tuple[Any, ...]] = []
    overlay = MutationCache(stored.get)
    publisher = ClusterPublisher(
        cast("KubeClient", client),
        autowasms=MutationCache(lambda _: owner),
        envoyfilters=overlay,
        record_event=lambda *event: told.append(event),
    )
    return publisher, overlay, told


OWNER = document(metadata={"uid": "u", "resourceVersion": "1"})
TERMINATING = frozenset({"NamespaceTerminating"})


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (
            errors.Invalid("no ports", code=422),
            AutoWasmError,
            "refuses the EnvoyFilter .* no ports",
        ),
        (errors.BadRequest("no field x", code=400), AutoWasmError, "refuses .* no field x"),
        (errors.Forbidden("no quota", code=403), AutoWasmError, "refuses .* no quota"),
        (
            errors.ServerError("etcdserver: request is too large", code=500),
            AutoWasmError,
            "refuses .* too large",
        ),
        (errors.ServerError("leader changed", code=500), errors.ServerError, "leader changed"),
        (errors.Conflict("old", code=409), errors.Conflict, "old"),
        (errors.NotFound("gone", code=404), errors.NotFound, "gone"),
        (
            errors.Forbidden("being terminated", code=403, causes=TERMINATING),
            TerminalError,
            "namespace default is being deleted",
        ),
    ],
)
async def test_a_refused_write_is_reported_or_retried(
    error: errors.ApiError, raised: type[Exception], says: str
) -> None:
    stored = {KEY: _envoyfilter(version="1")}
    publisher, _, _ = _publisher(RefusingClient(error), stored, OWNER)
    with pytest.raises(raised, match=says) as caught:
        await publisher.publish(KEY, OWNER, _envoyfilter(patches=("x",)))
    if isinstance(caught.value, AutoWasmError):
        assert caught.value.reason == "EnvoyFilterRefused"


@pytest.mark.parametrize("error", [errors.Conflict("old", code=409), errors.NotFound("gone")])
async def test_after_a_conflict_the_informer_counts_and_not_our_own_write(
    error: errors.ApiError,
) -> None:
    stored = {KEY: _envoyfilter(version="1")}
    publisher, overlay, _ = _publisher(RefusingClient(error), stored, OWNER)
    overlay.wrote(KEY, _envoyfilter(version="2", patches=("ours",)))
    with pytest.raises(type(error)):
        await publisher.publish(KEY, OWNER, _envoyfilter(patches=("x",)))
    assert overlay.get(KEY) == _envoyfilter(version="1")


@pytest.mark.parametrize(
    "metadata", [{"ownerReferences": []}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}]
)
async def test_an_envoyfilter_that_is_foreign_or_goes_is_not_found(
    metadata: dict[str, Any],
) -> None:
    live = _envoyfilter(version="1")
    live["metadata"] |= metadata
    client = HeldClient(live)
    publisher, overlay, told = _publisher(client, {}, OWNER)
    await publisher.find(KEY, OWNER)
    assert overlay.get(KEY) is None
    assert (client.requests, told) == ([], [])


async def test_a_raised_count_of_healings_is_announced_and_not_written() -> None:
    key, client = ObjectKey("team", "test"), CountingClient()
    owner = explained.autowasm()

    def rendered(resend: int) -> dict[str, Any]:
        return render(parse(owner), explained.RECORD, EnvoyFetch(), resend=resend)

    stored: dict[ObjectKey, Any] = {}
    publisher, _, told = _publisher(client, stored, owner)
    for resend in (0, 0, 7):  # the reconciler uses the count of the live EnvoyFilter
        stored[key] = rendered(resend)
        assert not await publisher.publish(key, owner, rendered(resend))
    assert [event[2] for event in told] == ["Mutated"]
    assert "drains all of its sidecars" in told[0][3]
    assert client.requests == []


async def test_a_status_that_says_the_same_is_not_written() -> None:
    client = CountingClient()
    owner = {**OWNER, "status": {"phase": "Synced"}}
    publisher, _, _ = _publisher(client, {}, owner)
    assert not await publisher.write_status(KEY, owner, {"phase": "Synced"})
    assert client.requests == []


@pytest.mark.parametrize("kind", ["status", "spec"])
async def test_object_being_deleted_is_not_written(kind: str) -> None:
    gone = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/hold"]}
    client = CountingClient()
    owner = document(metadata={"uid": "u", "resourceVersion": "1", **gone})
    live = _envoyfilter(version="1")
    live["metadata"] |= gone
    publisher, _, _ = _publisher(client, {KEY: live}, owner)
    if kind == "status":
        assert not await publisher.write_status(KEY, owner, {"phase": "Synced"})
    else:
        with pytest.raises(AutoWasmError, match=r"finalizers: example\.com/hold"):
            await publisher.publish(KEY, owner, _envoyfilter(patches=("x",)))
    assert client.requests == []
