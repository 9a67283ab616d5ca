"""The sandbox ends in a verdict, and never in an exception, whatever a module asks of it."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autowasm.sandbox.engine import Engine, make_engine
from autowasm.sandbox.vm import Started, StartFailure
from autowasm.trial.trial import Trial
from tests.hostile import hostcalls


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


def outcome(trial: Trial) -> object:
    started = trial.started
    return started, trial.start_log


@given(data=st.binary(max_size=1500))
@example(data=b"")
@example(data=b"\xff" * 1500)
@settings(max_examples=60, deadline=None)
def test_any_host_calls_with_any_arguments_give_the_same_verdict_again(
    data: bytes, engine: Engine
) -> None:
    first, second = hostcalls.run(data, engine), hostcalls.run(data, engine)
    assert isinstance(first.started, Started | StartFailure)
    assert outcome(first) == outcome(second)
