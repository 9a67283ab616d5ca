"""The logs of these tests are captured, so that tests can assert them."""

from collections.abc import Iterator

import pytest
import structlog.testing
from structlog.typing import EventDict


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """The logged events."""
    with structlog.testing.capture_logs() as caught:
        yield caught
