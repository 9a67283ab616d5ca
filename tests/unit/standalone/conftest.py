"""The logs of these tests are captured, so that tests can assert them."""

from collections.abc import Iterator

import pytest
import structlog.testing
from structlog.typing import EventDict

from autowasm.net.pools import Pools
from autowasm.standalone import directory


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between two scans of a directory: their order is tested, not their length."""
    monkeypatch.setattr(directory, "_CONFIRM_AFTER", 0.1)
    monkeypatch.setattr(directory, "_LOST_PAUSE", 0.1)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """The logged events."""
    with structlog.testing.capture_logs() as caught:
        yield caught


@pytest.fixture
def pools() -> Iterator[Pools]:
    """Threads, as the process has them."""
    with Pools(transfers=1) as made:
        yield made
