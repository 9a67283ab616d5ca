"""The proof from a sidecar's statistics in a mesh: real istiod, Envoy with Istio's bootstrap, read from its port 15090."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest
import pytest_asyncio

from autowasm.controller.pods import envoystats
from autowasm.controller.pods.envoystats import ReadFailure, SidecarStats, UnreadStats
from autowasm.controller.pods.podmatching import Pod
from autowasm.controller.pods.runstate import RunState, judge
from autowasm.controller.pods.statsreader import StatsReader
from autowasm.limits import StatsLimits
from autowasm.telemetry.metrics import Metrics
from tests.parts import filters, ports, pypi, wire
from tests.parts.agent import STATISTICS_PORT, injected
from tests.parts.controlplane import ControlPlane
from tests.parts.mesh import Mesh, composed

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

DEADLINE = 90


@dataclass
class ReadMesh(Mesh):
    """A mesh with a workload whose sidecar runs as in a Pod, and the reader with its own port."""

    host: str
    reader: StatsReader
    labels: dict[str, str]

    def pod(self, address: str = "") -> Pod:
        """The workload's Pod, or one with another address."""
        address = address or self.host.rpartition(":")[0]
        return Pod("default", "read", b"1" * 16, (), address, "Running", 1, injected=True)

    async def read(self) -> SidecarStats:
        """One reading."""
        reading = await self.reader.read_pod(self.pod())
        assert isinstance(reading, SidecarStats), reading
        return reading

    async def until(self, wanted: Callable[[SidecarStats], bool]) -> SidecarStats:
        """The first reading that is as wanted. Raises TimeoutError with the last one."""
        last: SidecarStats | None = None
        try:
            async with asyncio.timeout(DEADLINE):
                while not wanted(last := await self.read()):
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            error.add_note(f"last: {last}")
            raise
        return last

    async def filtered(self, name: str, filter_: str, **fields: object) -> None:
        """Apply an AutoWasm with this filter."""
        path = await asyncio.to_thread(filters.build, filter_)
        image = await self.push(filter_, await asyncio.to_thread(path.read_bytes))
        port = int(self.host.rpartition(":")[2])
        document = self.autowasm(image, name=name, applyPorts=[port], **fields)
        document["spec"]["selector"]["matchLabels"] = self.labels
        await self.apply(document)


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=pypi.ENVOY_VERSIONS)
async def mesh(
    request: pytest.FixtureRequest,
    control_plane: ControlPlane,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[ReadMesh]:
    assert envoystats.PORT == STATISTICS_PORT
    directory = tmp_path_factory.mktemp("read")
    labels, address = {"app": "read"}, ports.free_address()
    async with composed(
        directory, plane=control_plane, authority=True, arguments=["--preflight=off"]
    ) as found:
        host = await found.add_workload("read", labels, address=address)
        enter = found.stack.enter_async_context
        await enter(
            injected(
                found.istiod,
                directory / "read",
                name="read",
                labels=labels,
                address=address,
                version=request.param,
            )
        )
        reader = await enter(
            StatsReader(is_shared=lambda _: False, limits=StatsLimits(), metrics=Metrics())
        )
        yield ReadMesh(**found.parts, host=host, reader=reader, labels=labels)


async def test_sidecar_is_read_from_its_own_port_through_each_state(mesh: ReadMesh) -> None:
    async def judged(before: SidecarStats, state: RunState, *, plugin: str) -> SidecarStats:
        return await mesh.until(lambda stats: judge(before, stats, plugin).state is state)

    before = await mesh.until(lambda stats: stats.is_envoy)
    assert before.uptime is not None
    assert judge(before, before, "redis-cache.first").state is RunState.NOT_ACCEPTED

    # Istio's bootstrap extracts the tag `cache` from the statistics of a plug-in with this name.
    await mesh.filtered("redis-cache.first", "fail-on-request", failStrategy="FAIL_RELOAD")
    running = await judged(before, RunState.RUNNING, plugin="redis-cache.first")
    assert set(running.plugins) == {"redis{cache=first}"}

    async def crash() -> None:
        while True:
            with suppress(OSError):
                await wire.get(f"http://{mesh.host}/", headers={"x-fail": "request"})

    crashing = asyncio.create_task(crash())
    try:
        await judged(running, RunState.CRASHING, plugin="redis-cache.first")
    finally:
        crashing.cancel()

    last = await mesh.read()
    refusing = {"pluginConfig": "refuse", "priority": 7}
    await mesh.filtered("second", "refuse-config", **refusing)
    refused = await judged(last, RunState.CONFIGURATION_REFUSED, plugin="second")
    assert refused.reloads_of("redis-cache.first") is not None


async def test_closed_port_is_reported_as_unreachable_statistics(mesh: ReadMesh) -> None:
    reading = await mesh.reader.read_pod(mesh.pod(ports.free_address()))
    assert isinstance(reading, UnreadStats)
    assert reading.why is ReadFailure.REFUSED
    assert judge(None, reading, "test").state is RunState.STATS_UNREACHABLE
