"""Every test here must leave the log without errors."""

import logging
from collections.abc import Iterator

import pytest
import structlog
from blockbuster import BlockBuster


@pytest.fixture(autouse=True)
def _sendfile_on_the_loop(blockbuster: BlockBuster) -> Iterator[None]:
    # A non-blocking socket and a file in the page cache: the one exception (ADR 1).
    sendfile = blockbuster.functions["os.sendfile"]
    before = sendfile.can_block_functions[:]
    sendfile.can_block_in("autowasm/performance/sendfile.py", "_copy")
    sendfile.can_block_in("autowasm/server/blobs.py", "_copy")
    yield
    sendfile.can_block_functions[:] = before


@pytest.fixture(autouse=True)
def _no_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with structlog.testing.capture_logs() as events:
        yield
    assert not [event for event in events if "exc_info" in event]
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [(record.name, record.getMessage()) for record in records]
