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

from autowasm.kube import writes
from autowasm.kube.client import KubeClient
from autowasm.kube.codec import Codec
from autowasm.kube.documents import DocumentCodec
from autowasm.kube.errors import Conflict, Forbidden
from autowasm.kube.informer import Informer
from autowasm.kube.listwatch import ListWatch
from autowasm.kube.pods import pod_codec
from autowasm.kube.recorder import EventRecorder
from autowasm.kube.resources import PODS, ObjectKey, ResourceType
from autowasm.limits import KubeLimits
from autowasm.net.pools import Pools
from tests.faults.proxy import Counters, CutAfter, FaultProxy, Hang, Mode, Pass, Refuse
from tests.parts.kubernetes import ApiError, Cluster, kubernetes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

CONFIG_MAPS = ResourceType("", "v1", "configmaps", "ConfigMap")
MAPS = "/api/v1/namespaces/default/configmaps"
BOTH = pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "pages"])
LIMITS = KubeLimits(page_size=7, call_timeout=5.0, connect_timeout=2.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    directory = tmp_path_factory.mktemp("cluster")
    async with kubernetes(directory, users={"nobody": ()}, controller_manager=False) as cluster:
        yield cluster


class Told:
    """ReflectorMetrics that count."""

    def __init__(self) -> None:
        self.lists: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()

    def listed(self, reason: str, objects: int) -> None:
        self.lists[reason] += 1

    def watch_ended(self, reason: str) -> None:
        self.ends[reason] += 1


@dataclass
class World:
    """A client behind a proxy, and an informer."""

    cluster: Cluster
    proxy: FaultProxy
    client: KubeClient
    informer: Informer[Any]
    told: Told

    async def put(self, name: str, **data: str) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        try:
            await self.cluster.request("PUT", f"{MAPS}/{name}", body=body)
        except ApiError as error:
            if error.status != 404:
                raise
            await self.cluster.request("POST", MAPS, body=body)

    async def remove(self, name: str) -> None:
        try:
            await self.cluster.request("DELETE", f"{MAPS}/{name}")
        except ApiError as error:
            if error.status != 404:
                raise

    async def clear(self) -> None:
        await self.cluster.request("DELETE", MAPS)

    async def equal(self) -> bool:
        listed = await self.cluster.request("GET", MAPS)
        wanted = {item["metadata"]["name"]: item["data"] for item in listed["items"]}
        store = self.informer.store
        return wanted == {key.name: (store.get(key) or {})["data"] for key in store}


@asynccontextmanager
async def world(
    cluster: Cluster,
    directory: Path,
    *,
    streaming: bool,
    limits: KubeLimits = LIMITS,
    codec: Codec[Any] | None = None,
    resource: ResourceType = CONFIG_MAPS,
    pause: float = 0.0,
) -> AsyncIterator[World]:
    address = urlsplit(cluster.url)
    assert address.hostname is not None
    assert address.port is not None
    async with FaultProxy(address.hostname, address.port) as proxy:
        through = f"https://{address.hostname}:{proxy.port}"
        text = cluster.kubeconfig.read_text().replace(cluster.url, through)
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text(text)
        told = Told()
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
                        namespace="default",
                        pause=pause,
                    ),
                    limits=limits,
                    metrics=told,
                    streaming=streaming,
                )
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(informer.run())
                    yield World(cluster, proxy, client, informer, told)
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
async def test_the_store_equals_the_server_whatever_happens_to_the_connection(
    cluster: Cluster, tmp_path: Path, streaming: bool, pause: float
) -> None:
    rng = random.Random(7)
    names = [f"map-{number}" for number in range(20)]

    async def change_something(it: World, times: int) -> None:
        for _ in range(times):
            name = rng.choice(names)
            if rng.random() < 0.3:
                await it.remove(name)
            else:
                text = "x" * rng.choice([1, 100, 40_000])
                await it.put(name, number=str(rng.random()), text=text)

    async with world(cluster, tmp_path, streaming=streaming, pause=pause) as it:
        await it.clear()
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


async def test_a_watch_that_rests_takes_what_came_meanwhile(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Large objects come as many TLS records, of which a pause finds the last one incomplete."""
    rng = random.Random(7)
    async with world(cluster, tmp_path, streaming=True, pause=0.02) as it:
        await it.clear()
        await it.informer.wait_synced()
        for turn in range(60):
            names = [f"map-{number}" for number in range(rng.choice([1, 1, 8]))]
            text = "x" * rng.choice([1, 5_000, 16_300, 70_000, 400_000])
            await asyncio.gather(*(it.put(name, turn=str(turn), text=text) for name in names))
            await asyncio.sleep(rng.choice([0, 0, 0.01, 0.05]))
        await until(it.equal)
        assert it.told.lists == {"start": 1}
        assert not it.told.ends


def bit(before: Counters, now: Counters) -> bool:
    """Whether a fault has bitten since."""
    return (now.cut, now.refused, now.hung) != (before.cut, before.refused, before.hung)


@BOTH
async def test_a_watch_cut_in_the_middle_of_a_line_resumes(
    cluster: Cluster, tmp_path: Path, streaming: bool
) -> None:
    async with world(cluster, tmp_path, streaming=streaming) as it:
        await it.clear()
        await it.put("before", a="b")
        await it.informer.wait_synced()
        await until(it.equal)
        it.proxy.mode = CutAfter(100_000)
        await it.put("large", text="x" * 300_000)
        await until(it.equal)
        assert it.proxy.counters.cut == 1
        assert it.told.ends == {"Unreachable": 1}
        assert it.told.lists == {"start": 1}, "no list was needed"


@BOTH
async def test_a_restart_of_the_server_loses_nothing(
    cluster: Cluster, tmp_path: Path, streaming: bool
) -> None:
    async with world(cluster, tmp_path, streaming=streaming) as it:
        await it.clear()
        for number in range(20):
            await it.put(f"map-{number}", a="b")
        await it.informer.wait_synced()
        await cluster.stop_api()
        await asyncio.sleep(1)
        assert len(it.informer.store) == 20, "what we know stays, while nobody answers"
        await cluster.start_api()
        await it.put("map-3", a="new")
        await it.remove("map-4")
        await until(it.equal)
        assert it.told.ends["Unreachable"] >= 1


@BOTH
async def test_an_expired_position_leads_to_a_list(
    cluster: Cluster, tmp_path: Path, streaming: bool
) -> None:
    """A restarted API server knows nothing of versions before its start, and says 410."""
    async with world(cluster, tmp_path, streaming=streaming) as it:
        await it.clear()
        await it.put("one", a="b")
        await it.put("two", a="b")
        await it.informer.wait_synced()
        await until(it.equal)
        it.proxy.mode = Refuse()
        it.proxy.cut_all()
        await it.remove("one")
        for number in range(5):
            await it.put("three", a=str(number))
        await cluster.stop_api()
        await cluster.start_api()
        it.proxy.mode = Pass()
        await until(it.equal)
        assert it.told.lists == {"start": 1, "Expired": 1}
        assert it.proxy.counters.refused >= 1


async def test_a_frozen_watch_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    limits = KubeLimits(watch_timeout=2.0, watch_grace=1.0, call_timeout=3.0)
    async with world(cluster, tmp_path, streaming=False, limits=limits) as it:
        await it.clear()
        await it.informer.wait_synced()
        await it.put("zero", a="b")
        await until(it.equal)  # by the watch, which is open then
        it.proxy.mode = Hang()
        await it.put("one", a="b")
        await until(lambda: it.told.ends["WatchFrozen"] >= 1)
        it.proxy.mode = Pass()
        await until(it.equal)
        assert it.proxy.counters.hung >= 1


async def test_pods_become_rows(cluster: Cluster, tmp_path: Path) -> None:
    path = "/api/v1/namespaces/default/pods"
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
    async with world(cluster, tmp_path, streaming=True, codec=pod_codec(), resource=PODS) as it:
        created = await cluster.request("POST", path, body=pod)
        await cluster.request("PUT", f"{path}/cart/status", body={**created, "status": status})
        store, key = it.informer.store, ObjectKey("default", "cart")
        await until(lambda: getattr(store.get(key), "phase", "") == "Running")
        row = store.get(key)
        assert row is not None
        assert row.uid == UUID(created["metadata"]["uid"]).bytes
        assert dict(row.labels) == {"app": "cart", "version": "v1"}
        assert (row.addresses, row.started, row.injected) == (("10.0.0.7",), 1767323045, True)
        await cluster.request("DELETE", f"{path}/cart?gracePeriodSeconds=0")
        await until(lambda: len(store) == 0)


async def test_writes_are_bound_to_what_was_read(cluster: Cluster, tmp_path: Path) -> None:
    async with world(cluster, tmp_path, streaming=True) as it:
        await it.clear()
        metadata = {"namespace": "default", "name": "mine"}
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"a": "1"},
        }
        read = await writes.create(it.client, CONFIG_MAPS, body)
        newer = await writes.replace(
            it.client, CONFIG_MAPS, {**body, "data": {"a": "2"}}, read=read
        )
        assert newer is not None
        with pytest.raises(Conflict):
            await writes.replace(it.client, CONFIG_MAPS, body, read=read)
        assert await writes.delete(it.client, CONFIG_MAPS, read=newer)
        again = await writes.create(it.client, CONFIG_MAPS, body)
        assert not await writes.delete(it.client, CONFIG_MAPS, read=newer), "another uid"
        assert await writes.delete(it.client, CONFIG_MAPS, read=again)


class Outcomes:
    """What became of each Event."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def event(self, outcome: str) -> None:
        self.seen.add(outcome)


async def test_events_are_taken_and_counted_up(cluster: Cluster, tmp_path: Path) -> None:
    async with world(cluster, tmp_path, streaming=True) as it:
        outcomes = Outcomes()
        recorder = EventRecorder(
            it.client, component="test", instance="me", limits=LIMITS, metrics=outcomes
        )
        about = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": "default", "name": "mine", "uid": "u1"},
        }
        task = asyncio.create_task(recorder.run())
        for _ in range(3):
            recorder.event(about, "Normal", "Tested", "hello")
        await recorder.flush(timeout=10)
        task.cancel()
        listed = await cluster.request("GET", "/api/v1/namespaces/default/events")
        counts = [item["count"] for item in listed["items"] if item["reason"] == "Tested"]
        assert counts == [3]
        assert outcomes.seen == {"written"}


async def test_missing_rights_are_told_as_such(cluster: Cluster, tmp_path: Path) -> None:
    with Pools() as pools:
        async with KubeClient(
            kubeconfig=cluster.kubeconfig_of("nobody"), pools=pools, user_agent="test/1"
        ) as client:
            with pytest.raises(Forbidden, match="nobody"):
                await client.get(PODS, ObjectKey("default", "x"))
