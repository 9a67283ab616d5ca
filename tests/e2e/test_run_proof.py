"""What a sidecar's statistics prove, on each Envoy that we promise: the real reader and the judgement, for each kind of failure.

The table of docs/reference/sidecar-statistics.md is what is expected. Each case has a fresh Envoy, whose admin port stands for
port 15090, and modules that no wasmer would publish; a sidecar as pilot-agent starts it is in `test_run_proof_mesh.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from autowasm.controller.pods.envoystats import Requests, SidecarStats
from autowasm.controller.pods.podindex import Pod
from autowasm.controller.pods.runstate import RunReport, RunState, judge
from autowasm.controller.pods.statsreader import StatsReader
from autowasm.limits import StatsLimits
from autowasm.telemetry.metrics import Metrics
from tests.parts import envoy as envoys
from tests.parts import filters, ports, pypi, wat, wire
from tests.parts.envoy import Envoy
from tests.parts.remotecode import CLUSTER, Listeners, Origin, Plugin
from tests.parts.upstream import upstream

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS),
]

ASSETS = Path(__file__).parents[1] / "assets" / "wat"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sidecar-statistics.md"
WORKERS = 2
NAME = "hello.default-0123456789ab"
POLICIES = {"FAIL_CLOSE": "FAIL_CLOSED", "FAIL_OPEN": "FAIL_OPEN", "FAIL_RELOAD": "FAIL_RELOAD"}
"""As an AutoWasm has them, to Envoy's."""
DEADLINE = 60
POD = Pod("default", "details", b"1" * 16, (), ports.LOOPBACK, "Running", 1, injected=True)


def _compiled(name: str) -> bytes:
    return wat.compile_file(ASSETS / f"{name}.wat")


MODULES: dict[str, Callable[[], bytes | None]] = {
    "good": lambda: _compiled("hello"),
    "crashes on a request": lambda: filters.build("fail-on-request").read_bytes(),
    "refuses its configuration": lambda: _compiled("refuses_configuration"),
    "no Proxy-Wasm ABI": lambda: _compiled("no_abi"),
    "cannot be fetched": lambda: None,
}
ABSENT = "f" * 64


@dataclass(frozen=True)
class Expected:
    """One row of the page, for one strategy."""

    vms: int | None
    fetched: int
    failures: int
    status: int
    state: RunState


def _rows() -> Iterator[tuple[str, str, Expected]]:
    """Of each module and strategy, what the page says."""
    section = PAGE.read_text().split("## What they are for each module")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines)
    vms = {"workers + 2": WORKERS + 2, "0": 0, "absent": None}
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert cells["Plug-in known"] == "yes"
        for strategy in POLICIES:
            status, state = cells[strategy].split()
            yield (
                cells["Module"],
                strategy,
                Expected(
                    vms=vms[cells["VMs"]],
                    fetched=int(cells["Fetched"]),
                    failures=int(cells["Fetch failures"]),
                    status=int(status),
                    state=RunState(state),
                ),
            )


TABLE = list(_rows())


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
        """The first reading that is judged so."""

        def judged(stats: SidecarStats) -> bool:
            report = judge(before, stats, plugin)
            assert report.state is wanted or not report.state.is_failure, report
            return report.state is wanted

        after = await self.until(judged, what=wanted.value, meanwhile=meanwhile)
        return after, judge(before, after, plugin)

    async def drained(self, *, without: str) -> SidecarStats:
        """A reading when the filter chains with this plug-in have ended."""
        return await self.until(
            lambda stats: stats.reloads_of(without) is None, what=f"without {without}"
        )

    async def ask(self, *, fail: bool = False) -> int:
        """The status of a request; `fail`: one over which the filter fail-on-request crashes."""
        host = f"{ports.LOOPBACK}:{self.listeners.ports[0]}"
        headers = {"x-fail": "request"} if fail else {}
        return (await wire.get(f"http://{host}/", headers=headers)).status


@asynccontextmanager
async def stand(directory: Path, version: str, *, listeners: int = 1) -> AsyncIterator[Stand]:
    """Run one."""
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
                drain_seconds=2,
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


@pytest.mark.parametrize(
    ("module", "strategy", "expected"), TABLE, ids=[f"{one}, {other}" for one, other, _ in TABLE]
)
async def test_statistics_and_judgement_are_those_of_the_page(
    version: str, module: str, strategy: str, expected: Expected, tmp_path: Path
) -> None:
    content = await asyncio.to_thread(MODULES[module])
    crashes = module == "crashes on a request"
    async with stand(tmp_path, version) as it:
        before = await it.read()
        assert before.is_envoy
        assert judge(before, before, NAME).state is RunState.NOT_ACCEPTED
        sha256 = it.origin.add(content) if content is not None else ABSENT

        it.listeners.use(Plugin(NAME, sha256, POLICIES[strategy]))
        settled = RunState.RUNNING if crashes else expected.state
        after, report = await it.state(before, settled)
        status = await it.ask(fail=crashes)
        if expected.state is not settled:
            after, report = await it.state(before, expected.state, meanwhile=True)

        assert (status, report.state) == (expected.status, expected.state)
        assert after.reloads_of(NAME) is not None
        assert (after.fetched, after.fetch_failures) == (expected.fetched, expected.failures)
        if expected.vms:
            # The page: threads that start VMs at the same moment may leave the gauge too low.
            assert after.active_vms in range(2, expected.vms + 1)
            assert after.created_vms == expected.vms + 1
        else:
            assert after.active_vms == expected.vms
        assert report.figures.other_plugins == 0
        assert (report.figures.reloads.total > 0) == (report.state is RunState.CRASHING)

        def counted(stats: SidecarStats) -> bool:
            figures = judge(before, stats, NAME).figures
            return figures.requests is not None and figures.requests.total > 0

        counting = await it.until(counted, what="a counted request")
        requests = judge(before, counting, NAME).figures.requests
        assert requests is not None
        assert (requests.failed > 0) == (expected.status == 503)
        # Without an earlier reading the judgement is the same: there is no other plug-in.
        assert judge(None, counting, NAME).state is expected.state


REFUSING, GOOD = "refuses its configuration", "good"


async def _swapped(it: Stand, first: str, second: str, *others: Plugin) -> SidecarStats:
    """A reading of the first module running, before the second takes its place."""
    old = await asyncio.to_thread(MODULES[first])
    new = await asyncio.to_thread(MODULES[second])
    assert old is not None
    empty = await it.read()
    it.listeners.use(Plugin("old", it.origin.add(wat.padded(old, size=len(old) + 20))), *others)
    before, _ = await it.state(empty, RunState.RUNNING, plugin="old")
    it.listeners.use(Plugin(NAME, it.origin.add(new) if new else ABSENT), *others)
    return before


@pytest.mark.parametrize(
    ("second", "state"),
    [
        (GOOD, RunState.RUNNING),
        (REFUSING, RunState.CONFIGURATION_REFUSED),
        ("cannot be fetched", RunState.FETCH_FAILED),
    ],
)
@pytest.mark.parametrize("listeners", [1, 2])
async def test_new_module_is_judged_alike_while_the_old_one_drains_and_after(
    version: str, second: str, state: RunState, listeners: int, tmp_path: Path
) -> None:
    async with stand(tmp_path, version, listeners=listeners) as it:
        before = await _swapped(it, GOOD, second)
        draining, report = await it.state(before, state)
        assert draining.reloads_of("old") is not None
        assert report.figures.other_plugins == 1

        drained = await it.drained(without="old")
        assert judge(before, drained, NAME).state is state
        assert judge(None, drained, NAME).state is state


@pytest.mark.parametrize(
    ("second", "state"),
    [(GOOD, RunState.RUNNING), (REFUSING, RunState.CONFIGURATION_REFUSED)],
)
async def test_another_plugin_in_the_process_does_not_hide_what_became_of_this_one(
    version: str, second: str, state: RunState, tmp_path: Path
) -> None:
    other = await asyncio.to_thread(filters.build, "deny")
    async with stand(tmp_path, version) as it:
        stranger = Plugin("stranger", it.origin.add(other.read_bytes()))
        before = await _swapped(it, GOOD, second, stranger)
        await it.state(before, state)
        drained = await it.drained(without="old")
        assert judge(before, drained, NAME).state is state
        assert judge(before, drained, "stranger").state is not RunState.CONFIGURATION_REFUSED
        if state is not RunState.RUNNING:
            assert judge(None, drained, NAME).state is RunState.UNKNOWN, "it may be the stranger"


async def test_crash_with_fail_open_as_wasmer_writes_it_shows_in_no_statistic(
    version: str, tmp_path: Path
) -> None:
    """So a rollout cannot see it. If a release of Envoy counts it, the judgement can."""
    module = await asyncio.to_thread(filters.build, "fail-on-request")
    async with stand(tmp_path, version) as it:
        it.listeners.use(Plugin(NAME, it.origin.add(module.read_bytes()), policy=""))
        before, _ = await it.state(None, RunState.RUNNING)

        async def counted(*, fail: bool) -> dict[str, str]:
            """All statistics of the process after some requests."""
            assert {await it.ask(fail=fail) for _ in range(20)} == {200}
            page = (await wire.get(f"http://{it.envoy.admin}/stats")).body.decode()
            return dict(line.split(": ", 1) for line in page.splitlines() if ": " in line)

        good, crashed = [await counted(fail=fail) for fail in (False, True)]
        assert "proxy_on_request_headers failed" in await it.envoy.log_text()
        changed = {name for name in crashed if crashed[name] != good.get(name)}
        assert not [name for name in changed if "wasm" in name or "5xx" in name], changed
        after = await it.read()
        assert judge(before, after, NAME).state is RunState.RUNNING
        requests = judge(before, after, NAME).figures.requests
        assert requests is not None
        assert (requests.total, requests.failed) == (40, 0)


async def test_module_that_is_awaited_is_not_a_failure(version: str, tmp_path: Path) -> None:
    async with stand(tmp_path, version) as it:
        good = await asyncio.to_thread(_compiled, "hello")
        sha256 = it.origin.add(good)
        it.origin.hold(sha256)
        before = await it.read()
        it.listeners.use(Plugin(NAME, sha256))
        await it.state(before, RunState.STARTING)
        assert judge(None, await it.read(), NAME).state is RunState.STARTING

        it.origin.release(sha256)
        await it.state(before, RunState.RUNNING)


async def test_envoy_that_has_the_module_rejects_a_configuration_that_it_refuses(
    version: str, tmp_path: Path
) -> None:
    module = await asyncio.to_thread(filters.build, "refuse-config")
    async with stand(tmp_path, version) as it:
        accepted = Plugin("old", it.origin.add(module.read_bytes()), configuration="accepted")
        it.listeners.use(accepted)
        before, _ = await it.state(None, RunState.RUNNING, plugin="old")

        it.listeners.use(replace(accepted, name=NAME, configuration="refuse"))
        # The name may be there for a moment after Envoy has rejected it.
        after = await it.until(
            lambda stats: stats.rejected == 1 and stats.reloads_of(NAME) is None, what="rejected"
        )

        report = judge(before, after, NAME)
        assert report.state is RunState.NOT_ACCEPTED
        assert "rejected a change" in report.message
        assert judge(before, after, "old").state is RunState.RUNNING


async def test_fetch_that_failed_on_one_of_two_listeners_is_a_failure(
    version: str, tmp_path: Path
) -> None:
    async with stand(tmp_path, version, listeners=2) as it:
        sha256 = it.origin.add(await asyncio.to_thread(_compiled, "hello"))
        it.origin.serve_once(sha256)
        before = await it.read()
        it.listeners.use(Plugin(NAME, sha256))
        _, report = await it.state(before, RunState.FETCH_FAILED)
        assert report.figures.fetch_failures == 1

        running = await it.until(lambda stats: stats.active_vms == WORKERS + 2, what="its VMs")
        assert judge(before, running, NAME).state is RunState.FETCH_FAILED


async def test_restarted_envoy_is_judged_by_what_it_counted_itself(
    version: str, tmp_path: Path
) -> None:
    good = await asyncio.to_thread(_compiled, "hello")
    async with stand(tmp_path / "one", version) as it:
        it.listeners.use(Plugin(NAME, it.origin.add(good)))
        before, _ = await it.state(None, RunState.RUNNING)
        for _ in range(3):
            await it.ask()
        before = replace(before, requests=Requests({2: 3}), uptime=1000)
    async with stand(tmp_path / "two", version) as it:
        it.listeners.use(Plugin(NAME, it.origin.add(good)))
        _, report = await it.state(before, RunState.RUNNING)
        assert report.figures.is_restarted
        assert report.figures.requests is None or report.figures.requests.total == 0
