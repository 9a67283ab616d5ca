import random

import pytest

from autowasm.backoff import Backoff


def test_doubles_up_to_the_maximum() -> None:
    backoff = Backoff(1.0, 60.0, jitter=0.0)
    assert [backoff.delay(n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("failures", [0, -1, 1])
def test_first_failure_waits_the_base(failures: int) -> None:
    assert Backoff(1.0, 60.0, jitter=0.0).delay(failures) == 1.0


def test_endless_failures_do_not_overflow() -> None:
    assert Backoff(1.0, 60.0, jitter=0.0).delay(10**9) == 60.0


def test_jitter_only_adds_and_at_most_its_part() -> None:
    rng = random.Random(0)
    delays = [Backoff(1.0, 60.0, jitter=0.5).delay(20, rng=rng) for _ in range(200)]
    assert 60.0 <= min(delays) < 65.0
    assert 85.0 < max(delays) <= 90.0
