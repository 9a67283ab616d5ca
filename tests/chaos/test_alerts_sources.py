"""Alerts report a source that does not answer or does not have the tag, and the AutoWasm that needs it."""

from pathlib import Path

import pytest

from tests.chaos.alert_faults import GROUPS, run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


async def test_alerts_and_panels_of_sources_that_fail(tmp_path: Path) -> None:
    await run(tmp_path, GROUPS["sources"])
