"""Backoff and TokenBucket."""

import random

import pytest

from autowasm.flowcontrol import Backoff, TokenBucket
from tests.fakes.clocks import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_a_burst_is_free_and_then_one_token_comes_after_another(clock: FakeClock) -> None:
    bucket = TokenBucket(rate=4, burst=3, clock=clock)
    assert [bucket.try_acquire() for _ in range(5)] == [True] * 3 + [False] * 2
    clock.now += 0.125
    assert not bucket.try_acquire()
    clock.now += 0.125
    assert [bucket.try_acquire() for _ in range(2)] == [True, False]


def test_a_rest_fills_the_bucket_and_no_more(clock: FakeClock) -> None:
    bucket = TokenBucket(rate=4, burst=3, clock=clock)
    for rest in (0.0, 0.75, 3600.0):
        clock.now += rest
        assert [bucket.try_acquire() for _ in range(4)] == [True] * 3 + [False]


def test_reservations_queue_behind_each_other(clock: FakeClock) -> None:
    bucket = TokenBucket(rate=4, burst=2, clock=clock)
    assert [bucket.reserve() for _ in range(4)] == [0.0, 0.0, 0.25, 0.5]
    assert not bucket.try_acquire()
    clock.now += 0.5
    assert bucket.reserve() == 0.25
    clock.now += 0.25 + 0.25
    assert bucket.reserve() == 0.0


def test_a_bucket_without_a_burst_lets_each_wait(clock: FakeClock) -> None:
    bucket = TokenBucket(rate=4, burst=0, clock=clock)
    assert [bucket.reserve() for _ in range(2)] == [0.25, 0.5]
    clock.now += 3600.0
    assert bucket.reserve() == 0.25


def test_cancelled_reservations_do_not_delay_later_ones(clock: FakeClock) -> None:
    bucket = TokenBucket(rate=4, burst=1, clock=clock)
    for _ in range(10):
        bucket.reserve()
    bucket.cancel_waits()
    assert bucket.reserve() == 0.25


def test_tokens_that_are_there_stay_when_waits_are_cancelled(clock: FakeClock) -> None:
    bucket = TokenBucket(rate=4, burst=2, clock=clock)
    bucket.cancel_waits()
    assert [bucket.reserve() for _ in range(3)] == [0.0, 0.0, 0.25]


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
