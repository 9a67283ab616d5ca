"""Modules from the texts in tests/assets/wat, and limits as they are by default."""

from collections.abc import Callable
from pathlib import Path

import pytest

from autowasm.limits import Limits
from tests.parts import wat

ASSETS = Path(__file__).parents[2] / "assets" / "wat"


@pytest.fixture(scope="session")
def module() -> Callable[[str], bytes]:
    """The module of a text in the assets, by its name."""
    return lambda name: wat.compile_file(ASSETS / f"{name}.wat")


@pytest.fixture(scope="session")
def compile_text() -> Callable[[str], bytes]:
    """wat2wasm."""
    return wat.compile_text


@pytest.fixture(scope="session")
def hello(module: Callable[[str], bytes]) -> bytes:
    """The good filter."""
    return module("hello")


@pytest.fixture
def limits() -> Limits:
    return Limits()
