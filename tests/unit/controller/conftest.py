"""The logs of these tests are captured, so that tests can assert them."""

from collections.abc import Iterator

import pytest
import structlog.testing
from structlog.typing import EventDict

from autowasm.controller import pullauthorization, sourcepolicy


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between two checks of a Secret or a file: their order is tested, not their length."""
    monkeypatch.setattr(pullauthorization, "_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(sourcepolicy, "_CONFIRM_AFTER", 0.1)
    monkeypatch.setattr(sourcepolicy, "_LOST_PAUSE", 0.1)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """The logged events."""
    with structlog.testing.capture_logs() as caught:
        yield caught
