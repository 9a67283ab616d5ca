"""Logs of these tests are caught, so that none is lost in the output and a test can look at them."""

from collections.abc import Iterator

import pytest
import structlog.testing
from structlog.typing import EventDict

from autowasm.controller import pullauthorization, sourcepolicy


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at a Secret or a file: their order is tested, not their length."""
    monkeypatch.setattr(pullauthorization, "_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(sourcepolicy, "_CONFIRM_AFTER", 0.1)
    monkeypatch.setattr(sourcepolicy, "_LOST_PAUSE", 0.1)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """What was logged."""
    with structlog.testing.capture_logs() as caught:
        yield caught
