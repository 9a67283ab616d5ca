"""One engine for all tests of this folder."""

from collections.abc import Callable

import pytest

from autowasm.sandbox.engine import Compiled, Engine, compile_module, make_engine


@pytest.fixture(scope="package")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="package")
def compiled(engine: Engine) -> Callable[[bytes], Compiled]:
    """Compile a module."""
    return lambda module: compile_module(engine, module)
