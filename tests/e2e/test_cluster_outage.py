"""The API server goes and comes back while objects change: afterwards the cluster is as if it had not."""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from autowasm.api import envoyfilter as expected
from autowasm.api import parsing
from autowasm.settings import EnvoyFetch
from tests.parts import provision, wat, wire
from tests.parts.installation import (
    Document,
    Installation,
    autowasms,
    envoyfilters,
    installed_without_istiod,
)
from tests.parts.kubernetes import ApiError, kubernetes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]

RACE_SECONDS = 30
CONVERGED_WITHIN = 90


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    for group in ("kubernetes", "registry"):
        for part in provision.GROUPS[group]:
            await asyncio.to_thread(part)
    directory = tmp_path_factory.mktemp("outage")
    async with (
        kubernetes(directory / "kubernetes") as cluster,
        installed_without_istiod(cluster, directory) as installation,
    ):
        yield installation


@dataclass
class _World:
    """The objects of one namespace as they are meant to be. Changes are tried until the API server takes them."""

    installation: Installation
    namespace: str
    digests: dict[str, str]
    """Of each image, the digest of its module."""
    wanted: dict[str, Document] = field(default_factory=dict)

    async def put(self, name: str, image: str, port: int) -> None:
        document = self.installation.autowasm(
            image, name=name, namespace=self.namespace, applyPorts=[port]
        )
        if name in self.wanted:
            change = {"spec": document["spec"]}
            await self._until_taken("PUT", autowasms(self.namespace, name), change)
        else:
            await self._until_taken("POST", autowasms(self.namespace), document)
        self.wanted[name] = document

    async def delete(self, name: str) -> None:
        await self._until_taken("DELETE", autowasms(self.namespace, name), None)
        self.wanted.pop(name, None)

    async def _until_taken(self, method: str, path: str, body: Any) -> None:
        """404 and 409 say that an earlier try was taken although its answer was lost."""
        taken = {"POST": 409, "DELETE": 404}.get(method)
        # It is not all there yet, or somebody wrote in between.
        later = {401, 403, 409, 429, 500, 503}
        tried = False
        async with asyncio.timeout(60):
            while True:
                try:
                    await self._call(method, path, body)
                except OSError:
                    tried = True
                    await asyncio.sleep(0.1)
                except ApiError as error:
                    if tried and error.status == taken:
                        return
                    if error.status not in later:
                        raise
                    await asyncio.sleep(0.02)
                else:
                    return

    async def _call(self, method: str, path: str, body: Any) -> None:
        cluster = self.installation.cluster
        if method == "PUT":
            body = {**await cluster.request("GET", path, timeout=5), **body}
        await cluster.request(method, path, body=body, timeout=5)

    async def converged(self) -> Document | None:
        """Every AutoWasm Synced with its own module, and exactly the EnvoyFilters that follow from them."""
        try:
            return {} if not await self.differences() else None
        except ApiError as error:
            if error.status == 429:  # "storage is (re)initializing", some seconds after the start
                return None
            raise

    async def differences(self) -> list[str]:
        cluster = self.installation.cluster
        objects = (await cluster.request("GET", autowasms(self.namespace)))["items"]
        filters = (await cluster.request("GET", envoyfilters(self.namespace)))["items"]
        live = {found["metadata"]["name"]: found for found in filters}
        problems = [f"{name}: extra or missing" for name in live.keys() ^ self.wanted.keys()]
        for found in objects:
            name = found["metadata"]["name"]
            if name not in live:
                problems.append(f"{name}: no EnvoyFilter")
            elif problem := self._difference(found, live[name]):
                problems.append(f"{name}: {problem}")
        return problems

    def _difference(self, found: Document, live: Document) -> str | None:
        status = found.get("status") or {}
        spec = self.wanted[found["metadata"]["name"]]["spec"]
        sha256 = self.digests[spec["filter"]["source"]["registry"]["image"]]
        record = expected.record_of(live)
        if found["spec"] != spec:
            return "not what was applied"
        if status.get("phase") != "Synced":
            return f"phase {status.get('phase')}: {status.get('message')}"
        if status["observedGeneration"] != found["metadata"]["generation"]:
            return "status of another generation"
        if record is None or not record.sha256 == sha256 == status["module"]["sha256"]:
            return "another module"
        wanted = expected.render(parsing.parse(found), record, EnvoyFetch())
        if live["spec"] != wanted["spec"]:
            return "another EnvoyFilter"
        owners = live["metadata"]["ownerReferences"]
        if owners != wanted["metadata"]["ownerReferences"]:
            return "another owner"
        return None

    async def wait_converged(self) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        try:
            await self.installation.wait_until(self.converged, timeout=CONVERGED_WITHIN)
        except TimeoutError as error:
            differences = "\n".join(await self.differences())
            raise TimeoutError(f"{differences}\n{error}") from error
        return time.monotonic() - began


async def _make_world(installation: Installation, namespace: str) -> _World:
    digests = {}
    for value in ("one", "two", "three"):
        module = wat.header_filter(value)
        image = await installation.push(value, module)
        digests[image] = hashlib.sha256(module).hexdigest()
    await installation.add_namespace(namespace)
    return _World(installation, namespace, digests)


@dataclass
class _Asked:
    good: int = 0
    bad: list[str] = field(default_factory=list)


async def _ask(installation: Installation, digests: list[str], stop: asyncio.Event) -> _Asked:
    """Fetch blobs as an Envoy would, and look at the probe as the kubelet would, all the time."""
    asked, server = _Asked(), installation.wasmer
    urls = [f"http://{server.host}/wasm/{digest}" for digest in digests]
    urls.append(f"http://{server.admin}/readyz")
    while not stop.is_set():
        for url in urls:
            answer = await wire.get(url)
            if answer.status == 200:
                asked.good += 1
            else:
                asked.bad.append(f"{url}: {answer.status} {answer.body[:200]!r}")
        await asyncio.sleep(0.05)
    return asked


async def _restart_api(installation: Installation) -> None:
    await installation.cluster.stop_api()
    await installation.cluster.start_api()


async def test_converges_after_a_restart_of_the_api_server_and_serves_meanwhile(
    installation: Installation,
) -> None:
    world = await _make_world(installation, "restart")
    images = list(world.digests)
    for number in range(50):
        await world.put(f"f{number}", images[number % 2], 9080)
    await world.wait_converged()
    stop = asyncio.Event()
    asking = asyncio.create_task(_ask(installation, [*world.digests.values()][:2], stop))
    try:
        restarting = asyncio.create_task(_restart_api(installation))
        for number in range(50):
            await world.put(f"f{number}", images[(number + 1) % 2], 9081 + number)
        await restarting
        took = await world.wait_converged()
    finally:
        stop.set()
        asked = await asking
    print(f"\nconverged {took:.2f} s after the last change; {asked.good} answers meanwhile")
    assert asked.bad == []
    assert asked.good > 50


async def test_random_changes_across_a_restart_of_the_api_server_converge(
    installation: Installation,
) -> None:
    seed = random.randrange(1_000_000)
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    world = await _make_world(installation, "race")
    images = list(world.digests)
    names = [f"f{number}" for number in range(60)]
    ends = time.monotonic() + RACE_SECONDS
    restarting: asyncio.Task[None] | None = None
    changes = 0

    async def change(own: list[str]) -> None:
        nonlocal changes
        while time.monotonic() < ends:
            name = rng.choice(own)
            if name in world.wanted and rng.random() < 0.3:
                await world.delete(name)
            else:
                await world.put(name, rng.choice(images), rng.randrange(9000, 9010))
            changes += 1
            await asyncio.sleep(rng.random() * 0.05)

    async with asyncio.TaskGroup() as group:
        for part in range(4):
            group.create_task(change(names[part::4]))
        await asyncio.sleep(RACE_SECONDS / 3)  # the outage is in the middle of it
        restarting = group.create_task(_restart_api(installation))
    assert restarting.done()
    took = await world.wait_converged()
    print(f"{changes} changes; converged {took:.2f} s after the last")
    assert changes > 100
