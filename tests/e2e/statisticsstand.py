"""An Envoy whose statistics are read and judged like those of a sidecar: its admin port replaces port 15090.

Its modules are ones that wasmer would not publish; its configuration comes from a file.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from autowasm.controller.pods.envoystats import SidecarStats
from autowasm.controller.pods.podmatching import Pod
from autowasm.controller.pods.runstate import RunReport, RunState, judge
from autowasm.controller.pods.statsreader import StatsReader
from autowasm.limits import StatsLimits
from autowasm.telemetry.metrics import Metrics
from tests.parts import envoy as envoys
from tests.parts import filters, ports, wat, wire
from tests.parts.envoy import Envoy
from tests.parts.remotecode import CLUSTER, Listeners, Origin
from tests.parts.upstream import upstream

ASSETS = Path(__file__).parents[1] / "assets" / "wat"
WORKERS = 2
NAME = "hello.default-0123456789ab"
DEADLINE = 60
POD = Pod("default", "details", b"1" * 16, (), ports.LOOPBACK, "Running", 1, injected=True)


def compiled(name: str) -> bytes:
    return wat.compile_file(ASSETS / f"{name}.wat")


MODULES: dict[str, Callable[[], bytes | None]] = {
    "good": lambda: compiled("hello"),
    "crashes on a request": lambda: filters.build("fail-on-request").read_bytes(),
    "refuses its configuration": lambda: compiled("refuses_configuration"),
    "no Proxy-Wasm ABI": lambda: compiled("no_abi"),
    "cannot be fetched": lambda: None,
}
ABSENT = "f" * 64


@dataclass
class Stand:
    """An Envoy with plain listeners, an origin of modules, and the reader."""

    origin: Origin
    listeners: Listeners
    envoy: Envoy
    reader: StatsReader

    async def read(self) -> SidecarStats:
        """One reading over HTTP."""
        reading = await self.reader.read_pod(POD)
        assert isinstance(reading, SidecarStats), reading
        return reading

    async def until(
        self, wanted: Callable[[SidecarStats], bool], *, what: str, meanwhile: bool = False
    ) -> SidecarStats:
        """The first reading that is as wanted. `meanwhile`: send requests that crash a module between readings."""
        last: SidecarStats | None = None
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    if wanted(last := await self.read()):
                        return last
                    if meanwhile:
                        await self.ask(fail=True)
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            error.add_note(f"not {what}; last: {last}")
            error.add_note((await self.envoy.log_text())[-4000:])
            raise

    async def state(
        self,
        before: SidecarStats | None,
        wanted: RunState,
        *,
        plugin: str = NAME,
        meanwhile: bool = False,
    ) -> tuple[SidecarStats, RunReport]:
        """The first reading with this judgement."""

        def judged(stats: SidecarStats) -> bool:
            report = judge(before, stats, plugin)
            assert report.state is wanted or not report.state.is_failure, report
            return report.state is wanted

        after = await self.until(judged, what=wanted.value, meanwhile=meanwhile)
        return after, judge(before, after, plugin)

    async def drained(self, *, without: str) -> SidecarStats:
        """A reading after the filter chains with this plug-in have ended."""
        return await self.until(
            lambda stats: stats.reloads_of(without) is None, what=f"without {without}"
        )

    async def ask(self, *, fail: bool = False) -> int:
        """The status of a request; with `fail` the filter fail-on-request crashes on it."""
        host = f"{ports.LOOPBACK}:{self.listeners.ports[0]}"
        headers = {"x-fail": "request"} if fail else {}
        return (await wire.get(f"http://{host}/", headers=headers)).status


@asynccontextmanager
async def stand(
    directory: Path, version: str, *, listeners: int = 1, drain_seconds: int = 2
) -> AsyncIterator[Stand]:
    """Run one. A replaced filter chain drains for `drain_seconds`."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        web = await enter(upstream())
        origin = await enter(Origin().running())
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        file = Listeners(directory, ports.free_ports(listeners))
        file.use()
        proxy = await enter(
            envoys.envoy(
                directory / "envoy",
                lds=file.path,
                clusters={"web": web.host, CLUSTER: origin.host},
                version=version,
                concurrency=WORKERS,
                drain_seconds=drain_seconds,
            )
        )
        reader = await enter(
            StatsReader(
                is_shared=lambda _: False,
                limits=StatsLimits(),
                metrics=Metrics(),
                port=int(proxy.admin.rpartition(":")[2]),
            )
        )
        yield Stand(origin, file, proxy, reader)
