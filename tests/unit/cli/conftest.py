"""`wasmc` as a process, for tests that run many commands."""

from pathlib import Path

import pytest

from tests.parts import wasmer
from tests.parts.clients import Client


@pytest.fixture
def wasmc(tmp_path: Path) -> Client:
    """Runs in `tmp_path`, which is its home folder too."""
    return wasmer.wasmc(tmp_path)
