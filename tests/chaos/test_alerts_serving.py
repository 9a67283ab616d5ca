"""Alerts report modules that sidecars request and do not get."""

from pathlib import Path

import pytest

from tests.chaos.alert_faults import GROUPS, run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


async def test_alerts_and_panels_of_modules_that_are_not_served(tmp_path: Path) -> None:
    await run(tmp_path, GROUPS["serving"])
