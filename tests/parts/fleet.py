"""Three real replicas of `wasmer controller` in a mesh, with a fault proxy in front of each part that they use.

    replica ──FaultProxy──▶ kube-apiserver        one proxy for each replica
    replica ──FaultProxy──▶ HttpFaultProxy ──▶ registry
    replica ──FaultProxy──▶ blob port of another  one proxy before each replica
    Envoy   ──────────────▶ blob ports            as istiod's endpoints

The cases of the fault suite are in `tests/chaos`. Invariant: `steady` counts every wrong answer; only a connection to a
process that the test itself has stopped may remain without an answer.
"""

import asyncio
import hashlib
import itertools
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autowasm.api import envoyfilter as expected
from autowasm.api import validation
from autowasm.settings import EnvoyFetch
from tests.parts import istio, ports, wat
from tests.parts.controlplane import ControlPlane
from tests.parts.downloads import Good, Outcome, Unreachable, Watch, fetch
from tests.parts.faults.http import Forward, HttpFaultProxy
from tests.parts.faults.proxy import FaultProxy, Pass
from tests.parts.installation import Document, Installation, autowasms, envoyfilters, installed
from tests.parts.istio import Istiod, istiod, sidecar, wait_for_blob_endpoints
from tests.parts.kubeapi import ApiError
from tests.parts.kubernetes import Cluster, kubernetes
from tests.parts.load import Load, LoadReport
from tests.parts.upstream import upstream
from tests.parts.wasmer import Wasmer

LEASE_SECONDS = 3
TIMINGS = ("--lease-duration=3s", "--renew-deadline=2s", "--retry-period=400ms")
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{istio.ROOT_NAMESPACE}/leases/wasmer"
REPLICAS = 3
LABELS = {"app": "details"}

ENVOY = EnvoyFetch(timeout=5.0)
"""An attempt without an answer ends within seconds, and the next one may reach another replica."""

_POLL = 0.2
"""Seconds: an answer with all metrics takes a replica 10 ms."""
_FOREVER = 3600.0
"""Seconds; an outer deadline ends it."""


@dataclass
class Fleet:
    """The running parts. `wanted`: names of AutoWasms to the digests that they should publish."""

    installation: Installation
    istiod: Istiod
    replicas: list[Wasmer]
    api: list[FaultProxy]
    peers: list[FaultProxy]
    registry_port: FaultProxy
    registry: HttpFaultProxy
    host: str
    """The sidecar's inbound listener (address:port). All sidecars of a fleet listen on this port, and on addresses of their own."""
    service: str
    """The service behind the sidecar."""
    envoy: EnvoyFetch
    """The sidecars' settings for fetches."""
    wanted: dict[str, str] = field(default_factory=dict)
    absent: list[Wasmer] = field(default_factory=list)
    """Replicas that the test has killed or frozen, or that are starting: they need not answer, but must never send wrong bytes."""
    stopping: list[Wasmer] = field(default_factory=list)
    """Replicas that the test stops: clients that have connected get a full answer."""
    _turns: dict[str, asyncio.Lock] = field(default_factory=dict)
    """Locks of the downloads, by replica."""
    _serial: Iterator[int] = field(default_factory=itertools.count)

    @property
    def port(self) -> int:
        """The sidecars'."""
        return int(self.host.rpartition(":")[2])

    @property
    def cluster(self) -> Cluster:
        """The control plane."""
        return self.installation.cluster

    @property
    def present(self) -> list[Wasmer]:
        """Replicas that must answer."""
        return [one for one in self.replicas if not self.is_absent(one)]

    def is_absent(self, replica: Wasmer) -> bool:
        """Whether it need not answer."""
        return any(one is replica for one in self.absent)

    # --- the leader

    async def leader(self, *, other_than: Wasmer | None = None, timeout: float = 30) -> Wasmer:
        """The replica with the metric of the leader."""
        async with asyncio.timeout(timeout):
            while True:
                leaders = [
                    one for one in self.present
                    if one is not other_than and await self.leads(one)
                ]  # fmt: skip
                if len(leaders) == 1:
                    return leaders[0]
                await asyncio.sleep(_POLL)

    async def leads(self, replica: Wasmer) -> bool:
        """The value of its metric."""
        try:
            return await replica.metric("autowasm_leader") == 1
        except OSError:
            return False

    async def follower(self) -> Wasmer:
        """One that does not lead."""
        leader = await self.leader()
        return next(one for one in self.present if one is not leader)

    # --- published objects

    def module(self, name: str) -> bytes:
        """A new module for the AutoWasm of this name."""
        return wat.header_filter(f"{name}-{next(self._serial)}", name="hello")

    async def push(self, module: bytes) -> str:
        """The reference."""
        return await self.installation.push(hashlib.sha256(module).hexdigest()[:12], module)

    async def apply(self, name: str, *, module: bytes | None = None, image: str = "") -> str:
        """Change (or make) the AutoWasm to a new module; its digest. Does not wait."""
        module = module or self.module(name)
        image = image or await self.push(module)
        document = self.installation.autowasm(image, name=name, applyPorts=[self.port])
        if name != "data":
            document["spec"]["selector"]["matchLabels"] = {"app": name}
        await self.installation.apply(document)
        self.wanted[name] = hashlib.sha256(module).hexdigest()
        return self.wanted[name]

    async def problems(self) -> list[str]:
        """Differences from the end state of a run without a fault."""
        request = self.cluster.request
        objects = (await request("GET", autowasms()))["items"]
        live = {
            one["metadata"]["name"]: one for one in (await request("GET", envoyfilters()))["items"]
        }
        problems = [
            f"{name}: AutoWasm extra or missing"
            for name in self.wanted.keys() ^ {one["metadata"]["name"] for one in objects}
        ]
        problems += [
            f"{name}: EnvoyFilter extra or missing" for name in self.wanted.keys() ^ live.keys()
        ]
        for found in objects:
            name = found["metadata"]["name"]
            if name in self.wanted and name in live:
                problems += _differences(found, live[name], self.wanted[name], self.envoy)
        return problems

    async def settled(self, *, timeout: float = 60) -> None:
        """Wait for the end state, with every digest on every replica. Raises TimeoutError with the differences."""
        problems: list[str] = []
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        await self._all_synced()
                        problems = await self.problems()
                    except (OSError, ApiError) as error:
                        problems = [repr(error)]
                    if not problems:
                        break
                    await asyncio.sleep(0.1)
                for replica, digest in itertools.product(self.present, self.wanted.values()):
                    outcome = await fetch(replica, digest)
                    assert isinstance(outcome, Good), outcome.problem
        except TimeoutError as error:
            with suppress(OSError, ApiError):
                problems = await self.problems()
            logs = [await one.process.tail(lines=25) for one in self.replicas]
            raise TimeoutError("\n".join([*problems, *logs])) from error

    async def _all_synced(self) -> None:
        """One after the other, each by a watch: listing all of them repeatedly would slow the replicas down."""
        for name, digest in list(self.wanted.items()):
            await self.cluster.client.wait_object(
                autowasms(name=name), partial(_is_synced, digest), timeout=_FOREVER
            )

    async def clean(self) -> None:
        """Undo every change of a test; of the AutoWasms only `data` stays."""
        for proxy in (*self.api, *self.peers, self.registry_port):
            proxy.mode = Pass()
        self.registry.fault = Forward()
        for replica in self.replicas:
            if not replica.process.alive:
                await replica.start(timeout=60)
        self.absent.clear()
        for name in [name for name in self.wanted if name != "data"]:
            await self.cluster.client.delete(autowasms(name=name))
            del self.wanted[name]
        await self.leader()
        await self.settled()

    # --- faults

    async def kill(self, replica: Wasmer) -> None:
        """kill -9."""
        self.absent.append(replica)
        await replica.process.kill()

    async def start(self, replica: Wasmer, *, timeout: float = 60) -> None:
        """Run it again; it must answer as soon as it is ready."""
        await replica.start(timeout=timeout)
        self._is_back(replica)

    async def stop(self, replica: Wasmer, *, timeout: float = 40) -> None:
        """SIGTERM; until it has ended, it answers clients that have connected."""
        self.stopping.append(replica)
        try:
            await replica.process.stop(timeout=timeout)
        finally:
            self.absent.append(replica)
            self.stopping[:] = [one for one in self.stopping if one is not replica]
        assert replica.process.returncode == 0

    def _is_back(self, replica: Wasmer) -> None:
        self.absent[:] = [one for one in self.absent if one is not replica]

    def _excused(self, replica: Wasmer) -> tuple[type[Outcome], ...]:
        """Failures of its downloads that are currently allowed."""
        if self.is_absent(replica):
            return (Outcome,)
        return (Unreachable,) if any(one is replica for one in self.stopping) else ()

    @contextmanager
    def frozen(self, replica: Wasmer) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end."""
        self.absent.append(replica)
        os.kill(replica.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(replica.process.pid, signal.SIGCONT)
            self._is_back(replica)

    async def lose_disk(self, *replicas: Wasmer) -> None:
        """Delete everything in their caches; they do not run."""
        for replica in replicas:
            assert not replica.process.alive
            await asyncio.to_thread(shutil.rmtree, replica.directory / "cache")

    # --- traffic that must continue

    @property
    def load(self) -> Load:
        """A load on the sidecar; an answer without the header is a failure."""
        return Load(self.host, header="hello", pause=0.04)

    @asynccontextmanager
    async def steady(self) -> AsyncIterator[tuple[Watch, LoadReport]]:
        """Downloads of every published digest from every replica, and requests through Envoy, until the context ends."""
        watch, stop = Watch(), asyncio.Event()
        async with self.load.steady() as report:
            tasks = [
                asyncio.create_task(self._download(replica, watch, stop), name="downloads")
                for replica in self.replicas
            ]
            try:
                yield watch, report
            finally:
                stop.set()
                await asyncio.gather(*tasks)

    async def _download(self, replica: Wasmer, watch: Watch, stop: asyncio.Event) -> None:
        while not stop.is_set():
            for digest in list(dict.fromkeys(await self._published())):
                before = self._excused(replica)
                async with self._turn(replica):
                    outcome = await fetch(replica, digest)
                watch.count(outcome, *before, *self._excused(replica))
                if stop.is_set():
                    return
            await asyncio.sleep(0.1)

    @asynccontextmanager
    async def between_downloads(self) -> AsyncIterator[None]:
        """Until the context ends, no download of `steady` is under way and none begins."""
        async with AsyncExitStack() as iterations:
            for replica in self.replicas:
                await iterations.enter_async_context(self._turn(replica))
            yield

    def _turn(self, replica: Wasmer) -> asyncio.Lock:
        return self._turns.setdefault(replica.host, asyncio.Lock())

    async def _published(self) -> Sequence[str]:
        """Digests that proxies have in their configuration in a settled state, as far as the test knows."""
        return self._announced

    _announced: list[str] = field(default_factory=list)

    async def publish(self, name: str, *, timeout: float = 60) -> str:
        """`apply`, and wait for the settled state: from then on `steady` downloads the digest continuously."""
        digest = await self.apply(name)
        await self.settled(timeout=timeout)
        self.announce()
        return digest

    def announce(self) -> None:
        """The wanted digests are published now."""
        self._announced = list(self.wanted.values())

    def withdraw(self, digest: str) -> None:
        """Stop downloading the digest: the test has removed it everywhere."""
        self._announced.remove(digest)


def _is_synced(digest: str, found: Document | None) -> bool:
    status = (found or {}).get("status") or {}
    return (
        found is not None
        and status.get("phase") == "Synced"
        and status["observedGeneration"] == found["metadata"]["generation"]
        and status["module"]["sha256"] == digest
    )


def _differences(found: Document, live: Document, digest: str, envoy: EnvoyFetch) -> list[str]:
    name, status = found["metadata"]["name"], found.get("status") or {}
    record = expected.record_of(live)
    if status.get("phase") != "Synced":
        return [f"{name}: phase {status.get('phase')}: {status.get('message')}"]
    if status["observedGeneration"] != found["metadata"]["generation"]:
        return [f"{name}: status of another generation"]
    if record is None or not record.sha256 == digest == status["module"]["sha256"]:
        return [f"{name}: another module than {digest[:12]}"]
    resend = expected.resend_count_of(live, digest)
    if (
        live["spec"]
        != expected.render(validation.parse(found), record, envoy, resend=resend)["spec"]
    ):
        return [f"{name}: another EnvoyFilter"]
    return []


def flags_of(envoy: EnvoyFetch) -> tuple[str, ...]:
    """Flags of all replicas of a fleet."""
    return (
        *TIMINGS,
        f"--envoy-fetch-timeout={envoy.timeout:g}s",
        f"--envoy-fetch-retries={envoy.retries}",
    )


@asynccontextmanager
async def new_fleet(
    directory: Path,
    *,
    plane: ControlPlane | None = None,
    arguments: Sequence[str] = (),
    envoy: EnvoyFetch = ENVOY,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Fleet]:
    """Run all parts; ready in about 6 s on a running control plane, in 20 s without one.

    `arguments` are more flags of every replica; `envoy` has the fetch settings of EnvoyFilters.

    It runs on `plane`, as the only installation there. Tests that damage etcd or the API server omit `plane`: then it has a
    control plane of its own. `env` replaces the environment of all replicas.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if plane is None:
            cluster = await enter(
                kubernetes(directory / "kubernetes", audit_level="RequestResponse")
            )
        else:
            cluster = plane.cluster
            await enter(plane.without_remains())
        control = await enter(istiod(cluster, directory / "istiod"))
        api_address = urlsplit(cluster.url)
        api = [
            await enter(FaultProxy(api_address.hostname or "", api_address.port or 0))
            for _ in range(REPLICAS)
        ]
        addresses = [ports.free_address() for _ in range(REPLICAS)]
        blob_port = ports.free_port(address=addresses[0])
        peers = [await enter(FaultProxy(address, blob_port)) for address in addresses]
        registry = await enter(HttpFaultProxy())
        registry_port = await enter(FaultProxy("127.0.0.1", registry.port))
        flags = [*flags_of(envoy), *(f"--peer=http://127.0.0.1:{proxy.port}" for proxy in peers)]
        flags += [f"--plain-http-registry=127.0.0.1:{registry_port.port}", *arguments]
        hosts = [f"{address}:{blob_port}" for address in addresses]
        urls = [f"https://127.0.0.1:{proxy.port}" for proxy in api]
        options: dict[str, Any] = {"host": hosts[0], "api": urls[0], "arguments": flags, "env": env}
        home = directory / "installation"
        installation = await enter(
            plane.private(home, **options)
            if plane is not None
            else installed(cluster, control.kubectl, home, **options)
        )
        installation.may_die = True
        registry.upstream = installation.registry.url
        installation.registry.host = f"127.0.0.1:{registry_port.port}"
        await installation.add_pull_secret("default")
        replicas = [installation.wasmer]
        for number in (1, 2):
            another = installation.another(
                f"replica-{number}", host=hosts[number], api=urls[number], arguments=flags, env=env
            )
            replicas.append(await enter(another))
        service = await enter(upstream())
        address = ports.free_address()
        port = ports.free_port(address=address)
        await control.add_workload(
            "details-v1", labels=LABELS, address=address, port=port, service=service.host
        )
        await control.add_blob_service(*hosts)
        envoy_proxy = await enter(
            sidecar(
                control, directory / "sidecar", name="details-v1", labels=LABELS, address=address
            )
        )
        await wait_for_blob_endpoints(envoy_proxy, *hosts)
        world = Fleet(
            installation,
            control,
            replicas,
            api,
            peers,
            registry_port,
            registry,
            f"{address}:{port}",
            service.host,
            envoy,
        )
        await world.leader()
        await world.publish("data")
        try:
            await world.load.wait_for("data-0")
        except TimeoutError as error:
            error.add_note(await envoy_proxy.process.tail(lines=200))
            raise
        yield world
