"""The proof from a sidecar's statistics, on each supported Envoy: the real reader and its judgement, for each kind of failure.

The expected results are the table of docs/reference/sidecar-statistics.md. Each case has a fresh Envoy, whose admin port
replaces port 15090, and modules that wasmer would not publish. `test_run_proof_replaced.py` tests a module that replaces
another one, `test_run_proof_mesh.py` a sidecar that pilot-agent starts.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from autowasm.controller.pods.envoystats import Requests, SidecarStats
from autowasm.controller.pods.runstate import RunState, judge
from tests.e2e.statisticsstand import ABSENT, MODULES, NAME, WORKERS, compiled, stand
from tests.parts import filters, pypi, wire
from tests.parts.remotecode import Plugin

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS),
]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sidecar-statistics.md"
POLICIES = {"FAIL_CLOSE": "FAIL_CLOSED", "FAIL_OPEN": "FAIL_OPEN", "FAIL_RELOAD": "FAIL_RELOAD"}
"""The strategies of an AutoWasm, and Envoy's names for them."""


@dataclass(frozen=True)
class Expected:
    """One row of the page, for one strategy."""

    vms: int | None
    fetched: int
    failures: int
    status: int
    state: RunState


def _rows() -> Iterator[tuple[str, str, Expected]]:
    """The judgement in the page for each module and strategy."""
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
        # The judgement is the same without an earlier reading: there is no other plug-in.
        assert judge(None, counting, NAME).state is expected.state


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
        good = await asyncio.to_thread(compiled, "hello")
        sha256 = it.origin.add(good)
        it.origin.hold(sha256)
        before = await it.read()
        it.listeners.use(Plugin(NAME, sha256))
        await it.state(before, RunState.STARTING)
        assert judge(None, await it.read(), NAME).state is RunState.STARTING

        it.origin.release(sha256)
        await it.state(before, RunState.RUNNING)


async def test_fetch_that_failed_on_one_of_two_listeners_is_a_failure(
    version: str, tmp_path: Path
) -> None:
    async with stand(tmp_path, version, listeners=2) as it:
        sha256 = it.origin.add(await asyncio.to_thread(compiled, "hello"))
        it.origin.serve_once(sha256)
        before = await it.read()
        it.listeners.use(Plugin(NAME, sha256))
        _, report = await it.state(before, RunState.FETCH_FAILED)
        assert report.figures.fetch_failures == 1

        running = await it.until(lambda stats: stats.active_vms == WORKERS + 2, what="its VMs")
        assert judge(before, running, NAME).state is RunState.FETCH_FAILED


async def test_restarted_envoy_is_judged_by_its_own_counters(version: str, tmp_path: Path) -> None:
    good = await asyncio.to_thread(compiled, "hello")
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
