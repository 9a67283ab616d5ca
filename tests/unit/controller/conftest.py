"""Logs of these tests are caught, so that none is lost in the output and a test can look at them."""

from collections.abc import Iterator

import pytest
import structlog.testing
from structlog.typing import EventDict


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """What was logged."""
    with structlog.testing.capture_logs() as caught:
        yield caught
