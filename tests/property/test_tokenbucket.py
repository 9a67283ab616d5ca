"""The bound of a token bucket, for callers of both kinds at any times."""

from hypothesis import given
from hypothesis import strategies as st

from autowasm.flowcontrol import TokenBucket


@given(
    rate=st.sampled_from([0.25, 1.0, 8.0]),
    burst=st.integers(0, 5),
    pauses=st.lists(st.sampled_from([0.0, 0.125, 0.5, 4.0]), max_size=40),
)
def test_no_span_of_time_has_more_than_the_burst_and_the_rate(
    rate: float, burst: int, pauses: list[float]
) -> None:
    now = 1000.0
    bucket = TokenBucket(rate=rate, burst=burst, clock=lambda: now)
    taken: list[float] = []
    due: list[float] = []
    for pause in pauses:
        now += pause
        if len(taken) % 2:
            due.append(now + bucket.reserve())
            taken.append(due[-1])
        elif bucket.try_acquire():
            taken.append(now)
    assert due == sorted(due)
    taken.sort()
    for first, begin in enumerate(taken):
        for count, end in enumerate(taken[first:], start=1):
            assert count <= max(burst, 1) + rate * (end - begin)
