"""Shared by the tests of alerts: rules with short durations, the panels' queries, and faults that last until the test ends them.

It does not test the faults themselves. Invariant: the rules are the shipped ones except for their durations.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from tests.parts import wire
from tests.parts.prometheus import Prometheus
from tools.generate.dashboards import rules
from tools.generate.dashboards.durations import Durations
from tools.generate.paths import BOARD

QUICK = Durations(scale=1 / 60, least=4.0)
"""A minute becomes a second, and no duration is shorter than four scrapes."""
WINDOW = "10s"
CLUSTER_ALERTS = {
    "AutoWasmNoLeader",
    "AutoWasmRolloutFailed",
    "AutoWasmRolloutWaiting",
    "AutoWasmWatchSilent",
    "AutoWasmWorkerStuck",
}
CLUSTER_PANELS = (
    "API server: ",
    "Pods by rollout state",
    "Pods by run state",
    "Sidecars read",
    "Duration of a reading",
    "Staged rollouts",
    "Events and unexpected errors A",
)
"""Panels that need an API server, by the beginning of their titles."""
POD_PANELS = ("Service A",)
"""Only wasmer in a Pod checks its Service: see `tests/e2e/test_cluster_installed.py`."""


def quick_rules(*, least: float = QUICK.least) -> str:
    return rules.render(replace(QUICK, least=least))


def queries() -> dict[str, str]:
    """Every query of the dashboard by its panel and its letter, as Grafana sends it with all variables selected."""
    found = {}
    for panel in json.loads(BOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"].replace("$__rate_interval", WINDOW)
            text = text.replace("$replica", ".*").replace("$namespace", ".*")
            found[f"{panel['title']} {target['refId']}"] = text
    return found


async def without_data(
    server: Prometheus, begin: float, end: float, *, but: Collection[str] = ()
) -> set[str]:
    """Queries that had no value at any moment. NaN, the quantile of no observations, is no value."""
    missing = set()
    for name, text in queries().items():
        if any(name.startswith(prefix) for prefix in but):
            continue
        found = await server.series(text, begin, end, 1)
        if not any(value != "NaN" for one in found for _, value in one["values"]):
            missing.add(name)
    return missing


@asynccontextmanager
async def again_and_again(
    act: Callable[[], Awaitable[object]], pause: float
) -> AsyncIterator[None]:
    """Repeat it until the context ends; a failed connection is a part of the fault."""

    async def run() -> None:
        while True:
            with suppress(OSError):
                await act()
            await asyncio.sleep(pause)

    task = asyncio.create_task(run(), name="again and again")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def fetch(host: str, digest: str, *, patience: float = 1.0) -> int:
    """The status of the answer to an Envoy's request."""
    headers = {"x-envoy-expected-rq-timeout-ms": str(int(patience * 1000))}
    url = f"http://{host}/wasm/{digest}"
    return (await wire.request("GET", url, headers=headers, timeout=30)).status
