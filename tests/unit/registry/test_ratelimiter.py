"""The rate of requests to a host."""

import pytest

from autowasm.errors import SourceUnavailable
from autowasm.limits import Limits
from autowasm.registry.ratelimiter import HostRateLimiter
from tests.fakes.clocks import FakeClock

LIMITS = Limits(attempt_wait=5, attempt_backoff=0.5, max_rate_pause=60)


def rate_limiter(clock: FakeClock, *, rate: float = 10, burst: int = 5) -> HostRateLimiter:
    return HostRateLimiter(rate=rate, burst=burst, limits=LIMITS, clock=clock)


def test_a_burst_is_free_and_then_the_rate_holds() -> None:
    clock = FakeClock(0.0)
    made = rate_limiter(clock)
    assert [made.reserve("h", "a") for _ in range(5)] == [0.0] * 5
    assert [made.reserve("h", "b") for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert made.reserve("other", "a") == 0.0
    clock.now = 0.8
    assert made.reserve("h", "a") == pytest.approx(0.0, abs=1e-9)


def test_no_rate_means_no_limit() -> None:
    made = rate_limiter(FakeClock(0.0), rate=0)
    assert {made.reserve("h", "a") for _ in range(1000)} == {0.0}


def test_retry_after_holds_for_this_host_and_credential_only() -> None:
    clock = FakeClock(0.0)
    made = rate_limiter(clock)
    made.answered("h", "a", 429, {"Retry-After": "120"})
    with pytest.raises(SourceUnavailable) as caught:
        made.reserve("h", "a")
    assert (caught.value.reason, caught.value.retry_after) == ("RegistryUnavailable", 120)
    assert made.reserve("h", "b") == made.reserve("other", "a") == 0.0
    clock.now = 117
    assert made.reserve("h", "a") == pytest.approx(3), "short pauses are waited for"
    clock.now = 121
    assert made.reserve("h", "a") == 0.0


def test_429_without_a_time_pauses_longer_each_time_until_an_answer_is_good() -> None:
    clock = FakeClock(0.0)
    made = rate_limiter(clock)
    pauses = []
    for _ in range(4):
        made.answered("h", "a", 429, {})
        pauses.append(made.reserve("h", "a"))
        clock.now += 100
    assert pauses == sorted(pauses)
    assert 0.5 <= pauses[0] < 0.6
    assert 4 <= pauses[3] < 5
    made.answered("h", "a", 200, {})
    made.answered("h", "a", 429, {})
    assert made.reserve("h", "a") < 0.6


def test_503_pauses_only_if_it_says_how_long() -> None:
    made = rate_limiter(FakeClock(0.0))
    made.answered("h", "a", 503, {})
    assert made.reserve("h", "a") == 0.0
    made.answered("h", "a", 503, {"Retry-After": "4"})
    assert made.reserve("h", "a") == pytest.approx(4)


def test_number_of_hosts_that_are_remembered_is_bounded() -> None:
    made = rate_limiter(FakeClock(0.0), rate=1, burst=0)
    for number in range(10_001):
        made.reserve(f"h{number}", "a")
    assert made.reserve("h0", "a") == pytest.approx(1.0), "it was forgotten"
    assert made.reserve("h10000", "a") == pytest.approx(2.0)
