"""When a test begins on a busy machine."""

from pathlib import Path

import pytest
import pytest_timeout

from tests.maxload import MaxLoad, Turn, runnable_threads

LIMIT = 4
LATER = 5.0


class Machine:
    """So many threads want to run, one after another; the last number remains."""

    def __init__(self, *loads: int) -> None:
        self.loads = list(loads)
        self.slept = 0.0

    def load(self) -> int:
        return self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def limit(self, turn: Turn, **seconds: float) -> MaxLoad:
        return MaxLoad(
            seconds, turn, limit=LIMIT, load=self.load, sleep=self.sleep, clock=lambda: self.slept
        )


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    file = tmp_path / "shared"
    file.touch()
    return file


def test_a_test_begins_at_once_below_the_limit(shared: Path) -> None:
    machine = Machine(LIMIT - 1)
    machine.limit(Turn(shared), file=60).wait("file")
    assert machine.slept == 0


def test_a_test_waits_until_the_mean_load_is_below_the_limit(shared: Path) -> None:
    machine = Machine(9, *[0, 9] * 20, *[3] * 20, 9)
    machine.limit(Turn(shared), file=60).wait("file")
    assert machine.loads[-3:] == [3, 3, 9]
    assert machine.slept == pytest.approx(5, abs=1)


def test_all_tests_of_a_file_wait_no_longer_than_the_file_takes(shared: Path) -> None:
    machine = Machine(9)
    limit = machine.limit(Turn(shared), file=3, other=2)
    for _ in range(5):
        limit.wait("file")
    assert machine.slept == pytest.approx(3, abs=0.2)
    limit.wait("other")
    assert machine.slept == pytest.approx(5, abs=0.4)


def test_a_test_of_a_file_without_a_record_does_not_wait(shared: Path) -> None:
    machine = Machine(9)
    machine.limit(Turn(shared), file=3).wait("new")
    assert machine.slept == 0


def test_long_files_begin_one_after_the_other(shared: Path) -> None:
    turn = Turn(shared)
    assert turn.take()
    machine = Machine(0)
    limit = machine.limit(Turn(shared), long=30, short=3)
    limit.wait("short")
    assert machine.slept == 0
    limit.wait("long")
    assert machine.slept == pytest.approx(30, abs=0.2), "another one has the turn"
    turn.leave(after=0)


def test_only_the_first_test_of_a_long_file_waits_for_its_turn(shared: Path) -> None:
    machine = Machine(0)
    limit = machine.limit(Turn(shared), long=30)
    limit.wait("long")
    with_turn = Turn(shared)
    assert not with_turn.take(), "the load of the first one is not visible yet"
    limit.wait("long")
    assert machine.slept == 0


def test_turn_passes_on_when_it_was_left(shared: Path) -> None:
    first, second = Turn(shared), Turn(shared)
    assert first.take()
    assert first.take()
    assert not second.take()
    first.leave(after=LATER)
    assert not second.take()
    second.leave(after=0)
    third = Turn(shared)
    assert not third.take(), "only its holder passes it on"


def test_a_test_waits_before_its_timer_starts(shared: Path) -> None:
    plugins = pytest.PytestPluginManager()
    limit = Machine(0).limit(Turn(shared))
    plugins.register(limit)
    plugins.register(pytest_timeout)
    calls = plugins.hook.pytest_runtest_protocol.get_hookimpls()  # the last one is called first
    assert [call.plugin for call in calls if call.wrapper or call.hookwrapper][-1] is limit


def test_threads_of_this_machine_are_counted() -> None:
    assert runnable_threads() >= 0
