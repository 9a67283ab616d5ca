"""A reflector against the real API server, with a proxy that breaks the connection: the store ends up equal, always."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import pytest_asyncio

from autowasm.controller.pods.podmatching import pod_codec
from autowasm.flowcontrol import Backoff
from autowasm.kube import reflector, writes
from autowasm.kube.client import KubeClient
from autowasm.kube.codec import Codec, DocumentCodec
from autowasm.kube.errors import Conflict, Forbidden
from autowasm.kube.informer import Informer
from autowasm.kube.listwatch import ListWatch
from autowasm.kube.recorder import EventRecorder
from autowasm.kube.resources import PODS, ObjectKey, ResourceType
from autowasm.limits import KubeLimits
from autowasm.net.pools import Pools
from tests.parts.controlplane import READER, ControlPlane
from tests.parts.faults.proxy import Counters, CutAfter, FaultProxy, Hang, Mode, Pass, Refuse
from tests.parts.kubeapi import ApiError
from tests.parts.kubernetes import Cluster

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

CONFIG_MAPS = ResourceType("", "v1", "configmaps", "ConfigMap")
BOTH = pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "pages"])
LIMITS = KubeLimits(page_size=7, call_timeout=5.0, connect_timeout=2.0)
PATIENT = replace(LIMITS, call_timeout=60.0, connect_timeout=60.0)
"""For tests that count the ends of watches: a busy server accepts each connection."""


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a reflector waits after a failure is tested in virtual time."""
    monkeypatch.setattr(reflector, "BACKOFF", Backoff(base=0.05, maximum=0.5, jitter=1.0))


@dataclass(frozen=True)
class Place:
    """ConfigMaps of one namespace, as another client changes them."""

    cluster: Cluster
    namespace: str

    @property
    def maps(self) -> str:
        """The path of the collection."""
        return f"/api/v1/namespaces/{self.namespace}/configmaps"

    async def put(self, name: str, **data: str) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        try:
            await self.cluster.request("PUT", f"{self.maps}/{name}", body=body)
        except ApiError as error:
            if error.status != 404:
                raise
            await self.cluster.request("POST", self.maps, body=body)

    async def remove(self, name: str) -> None:
        await self.cluster.client.delete(f"{self.maps}/{name}")


@pytest_asyncio.fixture(loop_scope="session")
async def place(control_plane: ControlPlane) -> Place:
    """A namespace for the test alone."""
    return Place(control_plane.cluster, await control_plane.add_namespace("reflected"))


class ReflectorRecorder:
    """ReflectorMetrics that count."""

    def __init__(self) -> None:
        self.lists: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()

    def listed(self, reason: str, objects: int) -> None:
        self.lists[reason] += 1

    def watch_ended(self, reason: str) -> None:
        self.ends[reason] += 1


@dataclass
class ProxiedInformer:
    """A client behind a proxy, and an informer."""

    place: Place
    proxy: FaultProxy
    client: KubeClient
    informer: Informer[Any]
    recorded: ReflectorRecorder

    async def equal(self) -> bool:
        listed = await self.place.cluster.request("GET", self.place.maps)
        wanted = {item["metadata"]["name"]: item["data"] for item in listed["items"]}
        store = self.informer.store
        return wanted == {key.name: (store.get(key) or {})["data"] for key in store}


@asynccontextmanager
async def proxied_informer(
    place: Place,
    directory: Path,
    *,
    streaming: bool,
    limits: KubeLimits = LIMITS,
    codec: Codec[Any] | None = None,
    resource: ResourceType = CONFIG_MAPS,
    pause: float = 0.0,
) -> AsyncIterator[ProxiedInformer]:
    cluster = place.cluster
    address = urlsplit(cluster.url)
    assert address.hostname is not None
    assert address.port is not None
    async with FaultProxy(address.hostname, address.port) as proxy:
        through = f"https://{address.hostname}:{proxy.port}"
        text = cluster.kubeconfig.read_text().replace(cluster.url, through)
        kubeconfig = directory / f"{proxy.port}.kubeconfig"
        kubeconfig.write_text(text)
        recorded = ReflectorRecorder()
        with Pools() as pools:
            async with KubeClient(
                kubeconfig=kubeconfig, pools=pools, user_agent="test/1", limits=limits
            ) as client:
                informer: Informer[Any] = Informer(
                    resource.plural,
                    list_watch=ListWatch(
                        client,
                        resource,
                        codec or DocumentCodec(),
                        namespace=place.namespace,
                        pause=pause,
                    ),
                    limits=limits,
                    metrics=recorded,
                    streaming=streaming,
                )
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(informer.run())
                    yield ProxiedInformer(place, proxy, client, informer, recorded)
                    task.cancel()


async def until(condition: Callable[[], bool | Awaitable[bool]], *, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.05)


@BOTH
@pytest.mark.parametrize("pause", [0.0, 0.05])
async def test_the_store_equals_the_server_after_connection_faults(
    place: Place, tmp_path: Path, streaming: bool, pause: float
) -> None:
    rng = random.Random(7)
    names = [f"map-{number}" for number in range(20)]

    async def change_something(it: ProxiedInformer, times: int) -> None:
        for _ in range(times):
            name = rng.choice(names)
            if rng.random() < 0.3:
                await place.remove(name)
            else:
                text = "x" * rng.choice([1, 100, 40_000])
                await place.put(name, number=str(rng.random()), text=text)

    async with proxied_informer(place, tmp_path, streaming=streaming, pause=pause) as it:
        await change_something(it, 20)
        await it.informer.wait_synced()
        faults: list[Mode] = [
            Refuse(),
            Hang(),
            *(CutAfter(rng.randrange(100_000), times=2, reset=reset) for reset in (True, False)),
        ]
        for fault in faults * 2:
            before = replace(it.proxy.counters)
            it.proxy.mode = fault
            if isinstance(fault, Refuse):
                it.proxy.cut_all(reset=rng.random() < 0.5)
            async with asyncio.timeout(60):
                while not bit(before, it.proxy.counters):
                    await change_something(it, 1)
            await change_something(it, 20)
            it.proxy.mode = Pass()
            await change_something(it, 5)
            await until(it.equal)


async def test_a_paused_watch_receives_the_events_of_the_pause(
    place: Place, tmp_path: Path
) -> None:
    """Large objects come as many TLS records, of which a pause finds the last one incomplete."""
    rng = random.Random(7)
    async with proxied_informer(place, tmp_path, streaming=True, pause=0.02) as it:
        await it.informer.wait_synced()
        for turn in range(60):
            names = [f"map-{number}" for number in range(rng.choice([1, 1, 8]))]
            text = "x" * rng.choice([1, 5_000, 16_300, 70_000, 400_000])
            await asyncio.gather(*(place.put(name, turn=str(turn), text=text) for name in names))
            await asyncio.sleep(rng.choice([0, 0, 0.01, 0.05]))
        await until(it.equal)
        assert it.recorded.lists == {"start": 1}
        assert not it.recorded.ends


def bit(before: Counters, now: Counters) -> bool:
    """Whether a fault has had an effect since."""
    return (now.cut, now.refused, now.hung) != (before.cut, before.refused, before.hung)


@BOTH
async def test_a_watch_cut_in_the_middle_of_a_line_resumes(
    place: Place, tmp_path: Path, streaming: bool
) -> None:
    async with proxied_informer(place, tmp_path, streaming=streaming, limits=PATIENT) as it:
        await place.put("before", a="b")
        await it.informer.wait_synced()
        await until(it.equal)
        it.proxy.mode = CutAfter(100_000)
        await place.put("large", text="x" * 300_000)
        await until(it.equal)
        assert it.proxy.counters.cut == 1
        assert it.recorded.ends == {"Unreachable": 1}
        assert it.recorded.lists == {"start": 1}, "no list was needed"


@asynccontextmanager
async def both(
    place: Place, directory: Path
) -> AsyncIterator[tuple[ProxiedInformer, ProxiedInformer]]:
    """Of the same objects, one that lists in a stream and one that lists in pages: they share the slow set-up."""
    async with (
        proxied_informer(place, directory, streaming=True) as streaming,
        proxied_informer(place, directory, streaming=False) as pages,
    ):
        yield streaming, pages


async def test_a_restart_of_the_server_loses_nothing(place: Place, tmp_path: Path) -> None:
    cluster = place.cluster
    async with both(place, tmp_path) as worlds:
        for number in range(20):
            await place.put(f"map-{number}", a="b")
        for it in worlds:
            await it.informer.wait_synced()
            await until(it.equal)
        known = [len(it.informer.store) for it in worlds]
        await cluster.stop_api()
        before = [it.proxy.counters.connections for it in worlds]

        def tried() -> bool:
            now = [it.proxy.counters.connections for it in worlds]
            return all(new >= old + 2 for new, old in zip(now, before, strict=True))

        await until(tried)  # to connect again, in vain
        assert [len(it.informer.store) for it in worlds] == known, (
            "what we know stays, while nobody answers"
        )
        await cluster.start_api()
        await place.put("map-3", a="new")
        await place.remove("map-4")
        for it in worlds:
            await until(it.equal)
            assert it.recorded.ends["Unreachable"] >= 1


async def test_an_expired_resource_version_causes_one_new_list(
    place: Place, tmp_path: Path
) -> None:
    """A restarted API server does not know versions before its start, and answers 410."""
    cluster = place.cluster
    async with both(place, tmp_path) as worlds:
        await place.put("one", a="b")
        await place.put("two", a="b")
        for it in worlds:
            await it.informer.wait_synced()
            await until(it.equal)
            it.proxy.mode = Refuse()
            it.proxy.cut_all()
        await place.remove("one")
        for number in range(5):
            await place.put("three", a=str(number))
        await cluster.stop_api()
        await cluster.start_api()
        for it in worlds:
            it.proxy.mode = Pass()
        for it in worlds:
            await until(it.equal)
            await until(
                lambda recorded=it.recorded: recorded.lists["Expired"] >= 1
            )  # counted after the store has changed
            assert it.recorded.lists == {"start": 1, "Expired": 1}
            assert it.proxy.counters.refused >= 1


async def test_a_frozen_watch_is_replaced(place: Place, tmp_path: Path) -> None:
    limits = KubeLimits(watch_timeout=1.0, watch_grace=0.5, call_timeout=3.0)
    async with proxied_informer(place, tmp_path, streaming=False, limits=limits) as it:
        await it.informer.wait_synced()
        await place.put("zero", a="b")
        await until(it.equal)  # by the watch, which is open then
        it.proxy.mode = Hang()
        await place.put("one", a="b")
        await until(lambda: it.recorded.ends["WatchFrozen"] >= 1)
        it.proxy.mode = Pass()
        await until(it.equal)
        assert it.proxy.counters.hung >= 1


async def test_pods_become_rows(place: Place, tmp_path: Path) -> None:
    path, cluster = f"/api/v1/namespaces/{place.namespace}/pods", place.cluster
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "cart", "labels": {"version": "v1", "app": "cart"}},
        "spec": {
            "containers": [{"name": "app", "image": "a"}, {"name": "istio-proxy", "image": "b"}]
        },
    }
    status = {
        "phase": "Running",
        "podIP": "10.0.0.7",
        "podIPs": [{"ip": "10.0.0.7"}],
        "startTime": "2026-01-02T03:04:05Z",
    }
    async with proxied_informer(
        place, tmp_path, streaming=True, codec=pod_codec(), resource=PODS
    ) as it:
        created = await cluster.request("POST", path, body=pod)
        await cluster.request("PUT", f"{path}/cart/status", body={**created, "status": status})
        store, key = it.informer.store, ObjectKey(place.namespace, "cart")
        await until(lambda: getattr(store.get(key), "phase", "") == "Running")
        row = store.get(key)
        assert row is not None
        assert row.uid == UUID(created["metadata"]["uid"]).bytes
        assert dict(row.labels) == {"app": "cart", "version": "v1"}
        assert (row.addresses, row.started, row.injected) == (("10.0.0.7",), 1767323045, True)
        await cluster.request("DELETE", f"{path}/cart?gracePeriodSeconds=0")
        await until(lambda: len(store) == 0)


async def test_writes_are_conditional_on_the_version_read(place: Place, tmp_path: Path) -> None:
    async with proxied_informer(place, tmp_path, streaming=True) as it:
        metadata = {"namespace": place.namespace, "name": "mine"}
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"a": "1"},
        }
        read = await writes.create(it.client, CONFIG_MAPS, body)
        newer = await writes.update(it.client, CONFIG_MAPS, {**body, "data": {"a": "2"}}, read=read)
        assert newer is not None
        with pytest.raises(Conflict):
            await writes.update(it.client, CONFIG_MAPS, body, read=read)
        await it.client.request(
            "DELETE", CONFIG_MAPS.object_path(ObjectKey(place.namespace, "mine"))
        )
        await writes.create(it.client, CONFIG_MAPS, body)
        with pytest.raises(Conflict):  # another uid
            await writes.update(it.client, CONFIG_MAPS, body, read=newer)


class Outcomes:
    """The outcome of each Event."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def event(self, outcome: str) -> None:
        self.seen.add(outcome)


async def test_events_are_taken_and_counted_up(place: Place, tmp_path: Path) -> None:
    async with proxied_informer(place, tmp_path, streaming=True) as it:
        outcomes = Outcomes()
        recorder = EventRecorder(
            it.client, component="test", instance="me", limits=LIMITS, metrics=outcomes
        )
        about = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": place.namespace, "name": "mine", "uid": "u1"},
        }
        task = asyncio.create_task(recorder.run())
        for _ in range(3):
            recorder.event(about, "Normal", "Tested", "hello")
        await recorder.flush(timeout=10)
        task.cancel()
        path = f"/api/v1/namespaces/{place.namespace}/events"
        listed = await place.cluster.request("GET", path)
        counts = [item["count"] for item in listed["items"] if item["reason"] == "Tested"]
        assert counts == [3]
        assert outcomes.seen == {"written"}


async def test_missing_rights_are_reported_as_such(cluster: Cluster) -> None:
    with Pools() as pools:
        async with KubeClient(
            kubeconfig=cluster.kubeconfig_of(READER), pools=pools, user_agent="test/1"
        ) as client:
            with pytest.raises(Forbidden, match=READER):
                await client.get(PODS, ObjectKey("default", "x"))
