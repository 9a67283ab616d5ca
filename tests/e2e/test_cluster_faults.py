"""The whole controller during faults of its API server: afterwards the cluster has the right state, and nothing was written twice."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from tests.clusterfixtures import PrivateInstallation
from tests.parts import wire
from tests.parts.audit import Entry
from tests.parts.controlplane import ControlPlane
from tests.parts.expected import ExpectedObjects, expected_objects
from tests.parts.faults.busy import no_place_for_wasmer
from tests.parts.faults.proxy import CutAfter, FaultProxy, Pass, Refuse
from tests.parts.installation import Document, Installation, installed_without_istiod
from tests.parts.kubernetes import Cluster, kubernetes

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

REPEATED_CALLS_LIMIT = 15
"""Maximum number of refusals for one kind in five seconds, with three objects and a watch: each has `Retry-After: 1`."""


@dataclass
class Faulty(Installation):
    """An installation with wasmer behind `proxy`; the test reaches the API server directly."""

    proxy: FaultProxy
    objects: ExpectedObjects

    async def stored(self) -> list[Entry]:
        """The accepted writes of wasmer, without Events."""
        kinds = {"autowasms/status", "envoyfilters"}
        writes = [one for one in await self.writes() if one.namespace == self.objects.namespace]
        return [entry for entry in writes if entry.resource in kinds and entry.code < 300]

    async def assert_nothing_written_twice(self) -> None:
        """No update without a change, no second EnvoyFilter, no rewrite of the same state."""
        stored = await self.stored()
        idle = [str(entry) for entry in stored if entry.changed_nothing]
        assert idle == []
        created = Counter(entry.name for entry in stored if entry.verb == "create")
        assert set(created.values()) <= {1}, created
        by_object: dict[tuple[str, str], list[object]] = {}
        for entry in stored:
            part = "status" if entry.resource.endswith("status") else "spec"
            by_object.setdefault((entry.resource, entry.name), []).append(entry.request[part])
        for what, states in by_object.items():
            for one, next_one in itertools.pairwise(states):
                assert one != next_one, what

    async def told(self, metric: str, resource: str = "autowasms") -> Counter[str]:
        """A metric of a reflector, by `reason`."""
        text = (await wire.get(f"http://{self.wasmer.admin}/metrics")).body.decode()
        return Counter(
            {
                sample.labels["reason"]: int(sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == f"autowasm_reflector_{metric}_total"
                and sample.labels["resource"] == resource
            }
        )


@asynccontextmanager
async def faulty(
    cluster: Cluster, install: Callable[[str], AbstractAsyncContextManager[Installation]]
) -> AsyncIterator[Faulty]:
    """`install` creates an installation that uses the API server at the given URL, the proxy's."""
    server = urlsplit(cluster.url)
    assert server.hostname is not None
    assert server.port is not None
    async with (
        FaultProxy(server.hostname, server.port) as proxy,
        install(f"https://{server.hostname}:{proxy.port}") as installation,
    ):
        namespace = await installation.add_namespace(f"faults-{next(_numbers)}")
        parts = {part.name: getattr(installation, part.name) for part in fields(Installation)}
        objects = await expected_objects(installation, namespace)
        yield Faulty(**parts, proxy=proxy, objects=objects)


_numbers = itertools.count()


@pytest_asyncio.fixture(loop_scope="session")
async def it(
    control_plane: ControlPlane, private_installation: PrivateInstallation, tmp_path: Path
) -> AsyncIterator[Faulty]:
    """On the shared control plane."""

    def install(api: str) -> AbstractAsyncContextManager[Installation]:
        return private_installation(tmp_path, api=api)

    async with faulty(control_plane.cluster, install) as it:
        yield it


@pytest_asyncio.fixture(loop_scope="session")
async def without_watch_cache(tmp_path: Path) -> AsyncIterator[Faulty]:
    """On an API server that reads its watches from etcd, and cannot serve versions that etcd has compacted."""
    async with kubernetes(
        tmp_path / "kubernetes",
        controller_manager=False,
        audit_level="RequestResponse",
        extra=["--watch-cache=false"],
    ) as cluster:

        def install(api: str) -> AbstractAsyncContextManager[Installation]:
            return installed_without_istiod(cluster, tmp_path, api=api)

        async with faulty(cluster, install) as it:
            yield it


async def test_relist_finds_changes_made_before_a_compaction(
    without_watch_cache: Faulty,
) -> None:
    it, objects = without_watch_cache, without_watch_cache.objects
    for number in range(10):
        await objects.put(f"f{number}", number % 2)
    await objects.wait_converged()
    assert await it.told("lists") == {"start": 1}

    it.proxy.mode = Refuse()
    it.proxy.cut_all()
    for number in range(5):
        await objects.put(f"f{number}", 2)
    for number in (8, 9):
        await objects.delete(f"f{number}")
    await objects.put("new", 0)
    await it.cluster.compact()

    async def refused() -> Document | None:
        return {} if it.proxy.counters.refused else None

    await it.wait_until(refused)
    it.proxy.mode = Pass()

    await objects.wait_converged()
    assert await it.told("lists") == {"start": 1, "Expired": 1}
    await it.assert_nothing_written_twice()


async def test_overloaded_api_server_gets_few_requests_and_no_list(it: Faulty) -> None:
    objects = it.objects
    for number in range(3):
        await objects.put(f"f{number}", 0)
    await objects.wait_converged()
    since = await it.audit.position()
    async with no_place_for_wasmer(it):
        it.proxy.cut_all()  # watches must be restarted, too
        for number in range(3):
            await objects.put(f"f{number}", 1)

        async def refused(*, watches: int = 0) -> Document | None:
            found = await _refusals(it, since)
            return {} if found and found["autowasms"] >= watches else None

        await it.wait_until(refused)
        await asyncio.sleep(5)
        refusals = await _refusals(it, since)
        assert max(refusals.values()) <= REPEATED_CALLS_LIMIT, refusals
        await it.wait_until(lambda: refused(watches=2))

    await objects.wait_converged()
    assert (await it.told("watches"))["TooManyRequests"] >= 2
    assert await it.told("lists") == {"start": 1}, "no list was needed"
    await it.assert_nothing_written_twice()


async def _refusals(it: Faulty, since: int) -> Counter[str]:
    """Their number by resource."""
    return Counter(entry.resource for entry in await it.requests(since) if entry.code == 429)


async def test_connections_cut_in_the_middle_of_a_line_cost_nothing(it: Faulty) -> None:
    rng, objects = random.Random(11), it.objects
    await objects.put("small", 0)
    await objects.wait_converged()

    # One event that is certainly cut: its line is longer than the limit of the proxy.
    it.proxy.mode = CutAfter(60_000)
    await objects.put("large", 0, padding=200_000)
    await objects.wait_converged()
    assert it.proxy.counters.cut == 1
    assert (await it.told("watches"))["Unreachable"] == 1

    # Then a cut at any place: in watches, and in answers to writes.
    for number in range(12):
        it.proxy.mode = CutAfter(rng.randrange(20_000), reset=bool(number % 2))
        await objects.put(f"f{number % 4}", number % 3, padding=rng.choice([0, 5_000, 50_000]))
        await objects.put("large", number % 3, padding=200_000 + number)
        await objects.wait_converged()

    assert it.proxy.counters.cut >= 10
    assert await it.told("lists") == {"start": 1}, "no list was needed"
    await it.assert_nothing_written_twice()
