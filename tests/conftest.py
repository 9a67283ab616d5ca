"""Fixtures of every test: no blocking calls of our own code on the loop, no leftover event loop, separate metrics."""

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import pytest_asyncio.plugin
import structlog
from blockbuster import BlockBuster, blockbuster_ctx
from looptime._internal import plugin as looptime_plugin

from autowasm.telemetry.metrics import Metrics

pytest_plugins = ["tests.scheduling", "tests.clusterfixtures"]

# pytest-asyncio on Python 3.11 leaves an event loop unclosed if a test without a loop ran first.
asyncio.set_event_loop(None)

# Without stored bytecode, each worker rewrites the assertions of every file, and each command that a test starts compiles
# all our modules: seconds per worker and half a second per command.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell without job control starts background jobs with SIGINT ignored, and every program that we start would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Hypothesis measures each example; on a busy machine 200 ms say nothing about the code. pytest-timeout ends a hanging test.
hypothesis.settings.register_profile("autowasm", deadline=None)
# `make unit` runs fewer examples than `make test`, different ones each time, and stores none.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20, database=None)
hypothesis.settings.load_profile("autowasm")


# looptime searches pytest-asyncio for the names of its fixtures at each set-up of a fixture: a tenth of a short test.
looptime_plugin._should_patch = lambda fixturedef, _: (
    fixturedef.func.__module__ == pytest_asyncio.plugin.__name__
)


def _import_test_files(config: pytest.Config) -> None:
    """Import the files of the run, in each worker beginning with another one.

    After a checkout, the first import of a file rewrites its assertions and stores the result. All workers collect the files in
    one order, so each of them would rewrite every file.
    """
    if (worker := getattr(config, "workerinput", None)) is None:
        return
    files = sorted(
        file
        for argument in config.args
        for file in (config.invocation_params.dir / argument).glob("**/test_*.py")
    )
    first = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for file in files[first:] + files[:first]:
        name = ".".join(file.relative_to(config.rootpath).with_suffix("").parts)
        with contextlib.suppress(Exception):  # the collection reports it
            importlib.import_module(name)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Objects from the collection of tests live until the run ends: the garbage collector need not visit them."""
    gc.disable()
    try:
        _import_test_files(session.config)
        yield
    finally:
        # Hypothesis searches once for references to its source of random numbers, and does not find frozen objects.
        hypothesis.given(hypothesis.strategies.none())(lambda _: None)()
        gc.collect()
        gc.freeze()
        gc.set_threshold(5_000, 20, 50)  # the defaults take a fifteenth of the time of `make unit`
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A blocking call that our code makes on the loop fails the test.

    One guard serves all tests: to build it and to change sixty methods costs a tenth of a short test.
    """
    with blockbuster_ctx("autowasm") as guard:
        # A test's own semaphore may be collected while our code runs.
        guard.functions["os.write"].can_block_in(
            "multiprocessing/resource_tracker.py", {"_check_alive", "_send"}
        )
        yield guard


@pytest.fixture
def metrics() -> Metrics:
    """Collectors with a registry of their own."""
    return Metrics()


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that runs a command in this process configures logging. This fixture resets it for the next test."""
    configure, root = structlog.configure, logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def without_cache(**options: Any) -> None:
        # A cached logger keeps its form, and its stream, until the process ends.
        configure(**{**options, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", without_cache)
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)
