"""Logs of these tests are caught, so that none is lost in the output and a test can look at them."""

from collections.abc import Iterator

import pytest
import structlog.testing
from structlog.typing import EventDict

from autowasm.net.pools import Pools


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """What was logged."""
    with structlog.testing.capture_logs() as caught:
        yield caught


@pytest.fixture
def pools() -> Iterator[Pools]:
    """Threads, as the process has them."""
    with Pools(transfers=1) as made:
        yield made
