"""The missing parts of a test run, the order of its files, and that waiting for a part is not time of a test."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backgroundbuilds import Missing, Waiting
from tests.parts import cache, provision


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Three parts; those in the set are there."""
    there: set[str] = set()

    def get(name: str) -> None:
        if name not in there:
            raise cache.Absent(name)

    parts = {name: lambda name=name: get(name) for name in ("small", "large", "last")}
    monkeypatch.setattr(provision, "PARTS", parts)
    return there


def test_missing_parts_are_in_the_order_in_which_they_are_got(made: set[str]) -> None:
    missing = Missing({"a": ("last", "small"), "b": ("large", "gone"), "c": ()})
    assert missing.of(["a", "b", "c", "new"]) == ["small", "large", "last"]
    assert missing.of(["a"]) == ["small", "last"]
    assert missing.of(["c", "new"]) == []


def test_a_file_ranks_by_the_last_of_its_missing_parts(
    made: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.backgroundbuilds._REFRESH_SECONDS", -1)
    missing = Missing({"a": ("small", "last"), "b": ("large",), "c": ("small",)})
    assert missing.rank("c") < missing.rank("b") < missing.rank("a")
    assert missing.rank("new") == 0
    made |= {"small", "last"}
    assert (missing.rank("a"), missing.rank("c")) == (0, 0)
    assert missing.rank("b") > 0


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    before = signal.getitimer(signal.ITIMER_REAL)
    waiting = Waiting({})
    yield waiting
    waiting.close()
    signal.setitimer(signal.ITIMER_REAL, *before)


def test_the_timer_of_a_test_stands_still_while_it_waits(waiting: Waiting) -> None:
    signal.setitimer(signal.ITIMER_REAL, 5000)
    with waiting.paused():
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        with waiting.paused():
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert 4000 < signal.getitimer(signal.ITIMER_REAL)[0] <= 5000


def test_a_thread_that_outlasts_its_test_leaves_the_timer_of_the_next_one(
    waiting: Waiting, request: pytest.FixtureRequest
) -> None:
    signal.setitimer(signal.ITIMER_REAL, 5000)
    thread = waiting.paused()
    thread.__enter__()
    protocol = waiting.pytest_runtest_protocol(request.node)
    next(protocol)  # the next test begins, and has no timer
    thread.__exit__(None, None, None)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    protocol.close()
