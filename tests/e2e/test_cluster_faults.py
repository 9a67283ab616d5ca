"""The whole controller while its API server fails it: afterwards the cluster is as it must be, and nothing was written twice."""

import asyncio
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.busy import no_place_for_wasmer
from tests.faults.proxy import CutAfter, FaultProxy, Pass, Refuse
from tests.parts import provision, wat, wire
from tests.parts.audit import Entry
from tests.parts.installation import (
    Document,
    Installation,
    autowasms,
    envoyfilters,
    installed_without_istiod,
)
from tests.parts.kubernetes import ApiError, kubernetes

pytestmark = pytest.mark.timeout(1800)

REPEATED_CALLS_LIMIT = 15
"""Refusals of what concerns one kind in five seconds, three objects and a watch: each asked for a second of patience."""


@dataclass
class Faulty(Installation):
    """An installation whose wasmer reaches the API server through `proxy`; the test does not."""

    proxy: FaultProxy
    wanted: dict[str, str] = field(default_factory=dict)
    """Of each AutoWasm that has to be there, the digest of its module."""
    modules: list[tuple[str, str]] = field(default_factory=list)
    """Images, and the digests of their modules."""

    async def make_modules(self) -> None:
        for value in ("one", "two", "three"):
            module = wat.header_filter(value)
            image = await self.push(value, module)
            self.modules.append((image, hashlib.sha256(module).hexdigest()))

    async def put(self, name: str, module: int, *, padding: int = 0) -> None:
        """Create it, or give it another module; `padding` bytes make the object larger."""
        image, digest = self.modules[module]
        document = self.autowasm(image, name=name)
        document["metadata"]["annotations"] = {"padding": "x" * padding}
        self.wanted[name] = digest
        while True:
            try:
                live = await self.get(name)
            except ApiError as error:
                if error.status != 404:
                    raise
                await self.cluster.request("POST", autowasms(), body=document)
                return
            metadata = {**live["metadata"], "annotations": document["metadata"]["annotations"]}
            changed = {**live, "metadata": metadata, "spec": document["spec"]}
            try:
                await self.cluster.request("PUT", autowasms(name=name), body=changed)
            except ApiError as error:
                if error.status != 409:  # wasmer wrote its status meanwhile
                    raise
            else:
                return

    async def delete(self, name: str) -> None:
        del self.wanted[name]
        await self.cluster.request("DELETE", autowasms(name=name))

    async def wait_converged(self) -> None:
        """Until every AutoWasm is Synced with its own module, and exactly the EnvoyFilters that follow from them are there."""
        problems: list[str] = []

        async def converged() -> Document | None:
            problems[:] = await self._problems()
            return {} if not problems else None

        try:
            await self.wait_until(converged, timeout=90)
        except TimeoutError as error:
            raise TimeoutError(f"{problems}\n{error}") from error

    async def _problems(self) -> list[str]:
        objects = (await self.cluster.request("GET", autowasms()))["items"]
        filters = (await self.cluster.request("GET", envoyfilters()))["items"]
        live = {found["metadata"]["name"]: str(found["spec"]) for found in filters}
        problems = [f"{name}: extra or missing" for name in live.keys() ^ self.wanted.keys()]
        for found in objects:
            name, status = found["metadata"]["name"], found.get("status") or {}
            digest = self.wanted.get(name, "not wanted")
            current = status.get("observedGeneration") == found["metadata"]["generation"]
            if not current or status["phase"] != "Synced" or status["module"]["sha256"] != digest:
                problems.append(f"{name}: {status}")
            if f"/wasm/{digest}" not in live.get(name, ""):
                problems.append(f"{name}: another module in the EnvoyFilter")
        return problems

    async def stored(self) -> list[Entry]:
        """What wasmer wrote and the API server took, but for Events."""
        kinds = {"autowasms/status", "envoyfilters"}
        writes = await self.writes()
        return [entry for entry in writes if entry.resource in kinds and entry.code < 300]

    async def assert_nothing_written_twice(self) -> None:
        """No update that changed nothing, no second EnvoyFilter, no state written again over itself."""
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
async def faulty(directory: Path, *, flags: Sequence[str] = ()) -> AsyncIterator[Faulty]:
    for group in ("kubernetes", "registry"):
        for part in provision.GROUPS[group]:
            await asyncio.to_thread(part)
    async with kubernetes(
        directory / "kubernetes", audit_level="RequestResponse", extra=flags
    ) as cluster:
        server = urlsplit(cluster.url)
        assert server.hostname is not None
        assert server.port is not None
        async with (
            FaultProxy(server.hostname, server.port) as proxy,
            installed_without_istiod(
                cluster, directory, api=f"https://{server.hostname}:{proxy.port}"
            ) as installation,
        ):
            parts = {part.name: getattr(installation, part.name) for part in fields(Installation)}
            it = Faulty(**parts, proxy=proxy)
            await it.make_modules()
            yield it


async def test_what_changed_before_a_compaction_is_found_by_a_list(tmp_path: Path) -> None:
    # Without its cache the API server watches etcd itself, and has nothing to say of what etcd has forgotten.
    async with faulty(tmp_path, flags=["--watch-cache=false"]) as it:
        for number in range(10):
            await it.put(f"f{number}", number % 2)
        await it.wait_converged()
        assert await it.told("lists") == {"start": 1}

        it.proxy.mode = Refuse()
        it.proxy.cut_all()
        for number in range(5):
            await it.put(f"f{number}", 2)
        for number in (8, 9):
            await it.delete(f"f{number}")
        await it.put("new", 0)
        await it.cluster.compact()

        async def refused() -> Document | None:
            return {} if it.proxy.counters.refused else None

        await it.wait_until(refused)
        it.proxy.mode = Pass()

        await it.wait_converged()
        assert await it.told("lists") == {"start": 1, "Expired": 1}
        await it.assert_nothing_written_twice()


async def test_a_server_that_is_too_busy_is_left_alone_for_as_long_as_it_asks(
    tmp_path: Path,
) -> None:
    async with faulty(tmp_path) as it:
        for number in range(3):
            await it.put(f"f{number}", 0)
        await it.wait_converged()
        since = await it.audit.position()
        async with no_place_for_wasmer(it):
            it.proxy.cut_all()  # watches too have to be begun again
            for number in range(3):
                await it.put(f"f{number}", 1)

            async def refused() -> Document | None:
                return {} if await _refusals(it, since) else None

            await it.wait_until(refused)
            await asyncio.sleep(5)
            refusals = Counter(entry.resource for entry in await _refusals(it, since))
        assert refusals["autowasms"] >= 2, refusals
        assert max(refusals.values()) <= REPEATED_CALLS_LIMIT, refusals

        await it.wait_converged()
        assert (await it.told("watches"))["TooManyRequests"] >= 2
        assert await it.told("lists") == {"start": 1}, "no list was needed"
        await it.assert_nothing_written_twice()


async def _refusals(it: Faulty, since: int) -> list[Entry]:
    return [entry for entry in await it.requests(since) if entry.code == 429]


async def test_connections_cut_in_the_middle_of_a_line_cost_nothing(tmp_path: Path) -> None:
    rng = random.Random(11)
    async with faulty(tmp_path) as it:
        await it.put("small", 0)
        await it.wait_converged()

        # One event that is cut for certain: its line is longer than what goes through.
        it.proxy.mode = CutAfter(60_000)
        await it.put("large", 0, padding=200_000)
        await it.wait_converged()
        assert it.proxy.counters.cut == 1
        assert (await it.told("watches"))["Unreachable"] == 1

        # Then wherever it hits: watches, and answers to what was written.
        for number in range(12):
            it.proxy.mode = CutAfter(rng.randrange(20_000), reset=bool(number % 2))
            await it.put(f"f{number % 4}", number % 3, padding=rng.choice([0, 5_000, 50_000]))
            await it.put("large", number % 3, padding=200_000 + number)
            await it.wait_converged()

        assert it.proxy.counters.cut >= 10
        assert await it.told("lists") == {"start": 1}, "no list was needed"
        await it.assert_nothing_written_twice()
