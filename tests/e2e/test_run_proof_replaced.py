"""The proof from a sidecar's statistics when a module replaces another one, on each supported Envoy.

Meanwhile the old module drains, and the statistics have it beside the new one.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from autowasm.controller.pods.envoystats import SidecarStats
from autowasm.controller.pods.runstate import RunState, judge
from tests.e2e.statisticsstand import ABSENT, MODULES, NAME, Stand, stand
from tests.parts import filters, pypi, wat
from tests.parts.remotecode import Plugin

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.parametrize("version", pypi.ENVOY_VERSIONS),
]


REFUSING, GOOD = "refuses its configuration", "good"


async def _swapped(it: Stand, first: str, second: str, *others: Plugin) -> SidecarStats:
    """A reading of the first running module, before the second one replaces it."""
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
    # Long enough for a reading while the old module drains.
    async with stand(tmp_path, version, listeners=listeners, drain_seconds=5) as it:
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
async def test_another_plugin_in_the_process_does_not_hide_the_run_state_of_this_one(
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


async def test_envoy_that_has_the_module_rejects_a_configuration_that_it_refuses(
    version: str, tmp_path: Path
) -> None:
    module = await asyncio.to_thread(filters.build, "refuse-config")
    async with stand(tmp_path, version) as it:
        accepted = Plugin("old", it.origin.add(module.read_bytes()), configuration="accepted")
        it.listeners.use(accepted)
        before, _ = await it.state(None, RunState.RUNNING, plugin="old")

        it.listeners.use(replace(accepted, name=NAME, configuration="refuse"))
        # The name may remain for a moment after Envoy has rejected the listener.
        after = await it.until(
            lambda stats: stats.rejected == 1 and stats.reloads_of(NAME) is None, what="rejected"
        )

        report = judge(before, after, NAME)
        assert report.state is RunState.NOT_ACCEPTED
        assert "rejected a listener update" in report.message
        assert judge(before, after, "old").state is RunState.RUNNING
