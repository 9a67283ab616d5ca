"""Alerts report a damaged module, a full store and a folder that is not writable."""

from pathlib import Path

import pytest

from tests.chaos.alert_faults import GROUPS, run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


async def test_alerts_and_panels_of_storage_that_fails(tmp_path: Path) -> None:
    await run(tmp_path, GROUPS["storage"])
