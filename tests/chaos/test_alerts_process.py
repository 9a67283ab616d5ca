"""Alerts report a blocked process and a process that is gone."""

from pathlib import Path

import pytest

from tests.chaos.alert_faults import GROUPS, run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


async def test_alerts_and_panels_of_a_process_that_is_held_up_or_gone(tmp_path: Path) -> None:
    await run(tmp_path, GROUPS["process"])
