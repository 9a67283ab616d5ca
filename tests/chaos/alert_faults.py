"""The faults that the alerts of one replica report, in groups that run side by side: real Prometheus, real wasmer, real Envoy.

The tests of each group are in a file of their own. Invariant: a fault ends and returns once its alerts have fired.
"""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.chaos import alerting, disks
from tests.chaos.alerting import again_and_again, fetch
from tests.e2e.conftest import Standalone
from tests.fakes.forkserver import children_of
from tests.parts import envoy as envoys
from tests.parts import ports, registry, wasmer, wat, wire
from tests.parts.faults.virtualtime import VirtualTime
from tests.parts.prometheus import Prometheus, prometheus
from tests.parts.upstream import upstream
from tools.generate.dashboards.alerts import ALERTS

_POLL_SECONDS = 31.0
"""Seconds until the next poll is due."""
_STATS = "type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config"


def template(port: int) -> str:
    """A listener that counts requests by their outcome, as Istio's Telemetry does."""
    document = yaml.safe_load(envoys.listeners_yaml([port], cluster="web"))
    manager = document["resources"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    tag = {"name": "response_code_details", "value_format": "%RESPONSE_CODE_DETAILS%"}
    counter = {"stat": {"name": "istio_requests", "tags": [tag]}, "value_fixed": 1}
    config = {"@type": _STATS, "stat_prefix": "access", "counters": [counter]}
    manager["access_log"] = [{"name": "envoy.access_loggers.stats", "typed_config": config}]
    return yaml.safe_dump(document, sort_keys=False)


@dataclass
class TimedStandalone(Standalone):
    """On a clock that the test moves."""

    time: VirtualTime


@asynccontextmanager
async def timed_standalone(directory: Path) -> AsyncIterator[TimedStandalone]:
    """A small disk budget, short timeouts, and one module in Envoy."""
    arguments = ["--disk-budget", "1Mi", "--namespace-disk-budget", "4Mi", "--blob-grace", "20s"]
    arguments += ["--envoy-fetch-timeout", "2s", "--envoy-fetch-retries", "1"]
    clock = VirtualTime(directory / "time")
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(upstream())
        store = await stack.enter_async_context(registry.distribution(directory / "registry"))
        port = ports.free_port()
        server = await stack.enter_async_context(
            wasmer.standalone(
                directory / "wasmer",
                template=template(port),
                plain_http=[store.host],
                arguments=arguments,
                env=clock.environment,
            )
        )
        clusters = {"web": web.host, wasmer.ENVOY_CLUSTER: server.host}
        proxied = await stack.enter_async_context(
            envoys.envoy(directory / "envoy", lds=server.lds, clusters=clusters)
        )
        proxy: Any = None  # there is no proxy between Envoy and wasmer here
        result = TimedStandalone(
            directory, stack, store, server, proxied, proxy, port, clusters, time=clock
        )
        server.apply(result.autowasm(await result.push_header("v1")))
        await server.wait_phase("test", "Synced")
        await result.load.wait_for("v1")
        yield result


Fault = Callable[[TimedStandalone, Prometheus], Awaitable[tuple[str, ...]]]
"""Makes its alerts fire, ends the fault, and returns the alerts' names."""


@dataclass(frozen=True, slots=True)
class Group:
    """Faults that run one after the other. `panels`: beginnings of queries that need faults such as these."""

    faults: tuple[Fault, ...]
    alerts: frozenset[str]
    panels: tuple[str, ...] = ()

    def wants(self, query: str) -> bool:
        """Whether the query, named as in `alerting.queries`, must have a value in a run of the group."""
        elsewhere: tuple[str, ...] = (*alerting.CLUSTER_PANELS, *alerting.POD_PANELS)
        elsewhere += tuple(one for group in GROUPS.values() for one in group.panels)
        return query.startswith(self.panels) or not query.startswith(elsewhere)


Measured = Callable[[Prometheus, float, float], Awaitable[None]]
"""Gets the scraped data, its beginning and its end (seconds since the epoch)."""


async def run(directory: Path, *groups: Group, then: Measured | None = None) -> None:
    """The groups' alerts fire during their faults and resolve afterwards; every panel that the groups list has data."""
    rules = alerting.quick_rules()
    async with (
        timed_standalone(directory) as standalone,
        prometheus(directory / "prometheus", rules=rules) as watcher,
    ):
        server, fired = standalone.wasmer, set[str]()
        begin = time.time()
        await watcher.scrape("wasmer", server.admin)
        await watcher.scrape("envoy", standalone.envoy.admin, path="/stats/prometheus")
        digest = server.status("test")["module"]["sha256"]
        async with (
            again_and_again(lambda: fetch(server.host, digest), 0.1),
            again_and_again(lambda: wire.get(f"http://127.0.0.1:{standalone.port}/"), 0.05),
        ):
            await _wait_scraped(watcher)
            await _wait_scraped_often(watcher)
            assert await watcher.firing() == set(), "nothing is wrong yet"
            for fault in (fault for group in groups for fault in group.faults):
                expected = await fault(standalone, watcher)
                fired |= set(expected)
                await watcher.wait_resolved(*expected)
            await watcher.wait_resolved(*(alert.name for alert in ALERTS))
        end = time.time()
        assert fired == frozenset().union(*(group.alerts for group in groups))
        if then:
            await then(watcher, begin, end)
        missing = await alerting.without_data(watcher, begin, end)
        wanted = sorted(one for one in missing if any(group.wants(one) for group in groups))
        assert not wanted, f"no data: {wanted}"


async def _wait_scraped(watcher: Prometheus) -> None:
    async with asyncio.timeout(60):
        for expression in ("autowasm_build_info", "envoy_server_live"):
            while await watcher.value(expression) is None:
                await asyncio.sleep(0.2)


async def _wait_scraped_often(watcher: Prometheus) -> None:
    """Several scrapes during which no alert may fire."""
    async with asyncio.timeout(60):
        while (await watcher.value("count_over_time(autowasm_build_info[1m])") or 0) < 6:
            await asyncio.sleep(0.2)


async def _sources(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """Tags that do not exist at first."""
    alerts = ("AutoWasmFailed", "AutoWasmNotSynced", "AutoWasmSourcesFail")
    server, asked = standalone.wasmer, 0
    server.apply(standalone.autowasm(standalone.image("v1"), name="older"))
    await server.wait_phase("older", "Synced")

    async def ask() -> None:
        nonlocal asked
        asked += 1
        for name in ("missing", "older"):
            document = standalone.autowasm(standalone.image("v2"), name=name)
            document["metadata"]["annotations"] = {"wasm.tcm.io/refresh": str(asked)}
            await asyncio.to_thread(server.apply, document)

    async with again_and_again(ask, 1.0):
        await server.wait_phase("missing", "Failed")
        await server.wait_phase("older", "Degraded")
        await watcher.wait_firing(*alerts)
        await standalone.push_header("v2")
        for name in ("missing", "older"):
            await server.wait_phase(name, "Synced", timeout=60)
        await watcher.wait_resolved(*alerts)
    for name in ("missing", "older"):
        server.delete(name)
    return alerts


async def _polls(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """wasmer polls the sources every half minute, the shortest interval, while the registry is down and time passes at once."""
    server, names = standalone.wasmer, [f"polled-{number}" for number in range(6)]
    for name in names:
        image = await standalone.push_header(name, name=name)
        server.apply(standalone.autowasm(image, name=name, refreshInterval="30s"))
    for name in names:
        await server.wait_phase(name, "Synced")
    await standalone.registry.stop()

    async def poll() -> None:
        before = await server.metric("autowasm_polls_total")
        await standalone.time.pass_(_POLL_SECONDS, [server])
        async with asyncio.timeout(60):
            while await server.metric("autowasm_polls_total") == before:
                await asyncio.sleep(0.1)

    async with again_and_again(poll, 0.5):
        await watcher.wait_firing("AutoWasmPollsFail", timeout=180)
        await standalone.registry.start()
        await watcher.wait_resolved("AutoWasmPollsFail", timeout=180)
    for name in names:
        assert server.status(name)["phase"] == "Synced", "what is published stays"
        server.delete(name)
    return ("AutoWasmPollsFail",)


async def _unknown(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """A client guesses digests."""
    async with again_and_again(lambda: fetch(standalone.wasmer.host, "0" * 64), 0.2):
        await watcher.wait_firing("AutoWasmUnknownModules")
    return ("AutoWasmUnknownModules",)


async def _damaged(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """A byte of the stored file is changed."""
    digest = standalone.wasmer.status("test")["module"]["sha256"]
    file = disks.blob_file(standalone.wasmer, digest)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)
    await watcher.wait_firing("AutoWasmBlobDamaged")
    return ("AutoWasmBlobDamaged",)


async def _full(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """Published modules use up the budget, and one more is published."""
    alerts = ("AutoWasmBudgetNearlyPinned", "AutoWasmStorageFull")
    server = standalone.wasmer
    for name, size in (("large", 870_000), ("more", 200_000)):  # an eighth is for compiled code
        module = wat.padded(wat.header_filter(name), size=size)
        server.apply(standalone.autowasm(await standalone.push(name, module), name=name))
        await server.wait_phase(name, "Synced" if name == "large" else "Failed", timeout=60)
    await watcher.wait_firing(*alerts)
    server.delete("large")
    await server.wait_phase("more", "Synced", timeout=120)
    server.delete("more")
    return alerts


async def _writes(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """Writes fail: there is a file in place of the folder."""
    server, asked = standalone.wasmer, 0
    folder = server.directory / "envoy/status"
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.touch()

    async def ask() -> None:
        nonlocal asked
        asked += 1
        document = standalone.autowasm(standalone.image("v1"), name="unwritten")
        document["metadata"]["annotations"] = {"wasm.tcm.io/refresh": str(asked)}
        await asyncio.to_thread(server.apply, document)

    async with again_and_again(ask, 0.5):
        await watcher.wait_firing("AutoWasmReconcileErrors")
        folder.unlink()
        folder.mkdir(exist_ok=True)  # unless wasmer has made it, and has written files into it
        for file in aside.iterdir():
            if not (folder / file.name).exists():
                file.rename(folder / file.name)
        await watcher.wait_resolved("AutoWasmReconcileErrors")
    server.delete("unwritten")
    return ("AutoWasmReconcileErrors",)


async def _held_up(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """The process gets no processor time, in the middle of its work."""
    pid = standalone.wasmer.process.pid

    async def hold() -> None:
        os.killpg(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(0.08)
        finally:
            os.killpg(pid, signal.SIGCONT)

    async with AsyncExitStack() as stack:
        for _ in range(8):  # so it is computing when it is stopped
            ask = again_and_again(
                lambda: wire.get(f"http://{standalone.wasmer.admin}/metrics"), 0.0
            )
            await stack.enter_async_context(ask)
        await stack.enter_async_context(again_and_again(hold, 0.08))
        await watcher.wait_firing("AutoWasmLoopBlocked")
    return ("AutoWasmLoopBlocked",)


async def _lost(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """The cache is empty and the registry is down when a proxy starts; then the registry returns."""
    alerts = ("AutoWasmModulesNotServed", "AutoWasmSidecarsCannotFetch", "AutoWasmRequestsFail")
    await standalone.registry.stop()
    await standalone.wasmer.process.stop()
    await asyncio.to_thread(shutil.rmtree, standalone.wasmer.directory / "cache")
    starting = asyncio.create_task(standalone.wasmer.start(timeout=120), name="wasmer")
    folder = standalone.directory / "newcomer"
    late = envoys.envoy(
        folder, lds=standalone.wasmer.lds, clusters=standalone.clusters, wait_for="admin"
    )
    async with late as newcomer:
        await watcher.scrape("newcomer", newcomer.admin, path="/stats/prometheus")
        await watcher.wait_firing(*alerts)
    await watcher.forget("newcomer")
    await standalone.registry.start()
    await starting
    return alerts


async def _preflight(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """The fork server is killed repeatedly while an AutoWasm gets other configurations."""
    server, asked = standalone.wasmer, 0
    name = "configured"

    async def kill() -> None:
        for pid in await asyncio.to_thread(_fork_servers, server.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def ask() -> None:
        nonlocal asked
        asked += 1
        document = standalone.autowasm(
            standalone.image("v1"), name=name, pluginConfig=f"number {asked}"
        )
        await asyncio.to_thread(server.apply, document)

    def starts(status: dict[str, Any]) -> str:
        found = [one["reason"] for one in status.get("conditions", ()) if one["type"] == "Starts"]
        return found[0] if found else ""

    async with again_and_again(ask, 1.0):
        async with again_and_again(kill, 0.05):
            await watcher.wait_firing("AutoWasmPreflightsFail")
            # It is published all the same. A pre-flight between two kills may succeed.
            await server.wait_status(
                name,
                lambda status: (
                    starts(status) == "PreflightUnavailable" and status["phase"] == "Synced"
                ),
            )
        # Pauses between starts have grown.
        await server.wait_status(name, lambda status: starts(status) == "Started", timeout=120)
        await watcher.wait_resolved("AutoWasmPreflightsFail")
    server.delete(name)
    return ("AutoWasmPreflightsFail",)


def _fork_servers(parent: int) -> list[int]:
    found = []
    for pid in children_of(parent):
        with suppress(OSError):
            if b"autowasm.preflight.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


async def _down(standalone: TimedStandalone, watcher: Prometheus) -> tuple[str, ...]:
    """No process at all."""
    await standalone.wasmer.process.kill()
    await watcher.wait_firing("AutoWasmDown")
    await standalone.wasmer.start()
    return ("AutoWasmDown",)


_FETCHING = (
    "Failed fetches by reason A",
    "AutoWasms that are not Synced A",
    "Reconcile duration A",
    "Reconcile duration B",
    "Fetch duration A",
    "Fetch duration B",
)
"""Panels that have data once a fetch has succeeded and one has failed."""
GROUPS = {
    "sources": Group(
        (_sources, _polls),
        frozenset(
            {"AutoWasmFailed", "AutoWasmNotSynced", "AutoWasmSourcesFail", "AutoWasmPollsFail"}
        ),
        _FETCHING,
    ),
    "storage": Group(
        (_damaged, _full, _writes),
        frozenset(
            {
                "AutoWasmBlobDamaged",
                "AutoWasmBudgetNearlyPinned",
                "AutoWasmStorageFull",
                "AutoWasmReconcileErrors",
            }
        ),
        _FETCHING,
    ),
    "serving": Group(
        (_unknown, _lost),
        frozenset(
            {
                "AutoWasmUnknownModules",
                "AutoWasmModulesNotServed",
                "AutoWasmSidecarsCannotFetch",
                "AutoWasmRequestsFail",
            }
        ),
        (*_FETCHING, "Envoy: requests failed by a filter A"),
    ),
    "process": Group(
        (_held_up, _preflight, _down),
        frozenset({"AutoWasmLoopBlocked", "AutoWasmPreflightsFail", "AutoWasmDown"}),
        ("Duration A",),
    ),
}
