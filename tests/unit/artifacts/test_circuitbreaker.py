import pytest

from autowasm.artifacts.fetchlimiter import CircuitBreakers
from autowasm.artifacts.source import SourceKey
from autowasm.errors import ContentRejected, SourceDenied, SourceNotFound, SourceUnavailable
from autowasm.limits import FetchLimits
from autowasm.telemetry.metrics import Metrics

KEY = SourceKey("r.example", "team/filter", "alice")
DOWN = SourceUnavailable("connection refused")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breakers(metrics: Metrics, clock: Clock) -> CircuitBreakers:
    limits = FetchLimits(breaker_failures=3, breaker_open=60.0, retry_maximum=300.0)
    return CircuitBreakers(limits, metrics=metrics, clock=clock)


def opened(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("autowasm_circuit_breakers_open")


def test_opens_after_enough_failures_in_a_row(
    breakers: CircuitBreakers, clock: Clock, metrics: Metrics
) -> None:
    for _ in range(2):
        breakers.failed(KEY, DOWN)
        breakers.check(KEY)
    breakers.failed(KEY, DOWN)
    with pytest.raises(SourceUnavailable, match=r"r\.example/team/filter: .* refused") as caught:
        breakers.check(KEY)
    assert (caught.value.reason, caught.value.retry_after) == ("BackingOff", 60.0)
    assert opened(metrics) == 1
    clock.now += 60.0
    breakers.check(KEY)
    assert opened(metrics) == 0


def test_success_forgets_failures(breakers: CircuitBreakers, metrics: Metrics) -> None:
    for _ in range(3):
        breakers.failed(KEY, DOWN)
    breakers.succeeded(KEY)
    breakers.failed(KEY, DOWN)
    breakers.check(KEY)
    assert opened(metrics) == 0


@pytest.mark.parametrize(
    "other",
    [
        SourceKey("r.example", "team/filter", "bob"),
        SourceKey("r.example", "team/other", "alice"),
        SourceKey("s.example", "team/filter", "alice"),
    ],
)
def test_other_key_is_not_affected(breakers: CircuitBreakers, other: SourceKey) -> None:
    for _ in range(9):
        breakers.failed(KEY, SourceDenied("wrong password"))
    breakers.check(other)


@pytest.mark.parametrize(
    "error", [SourceNotFound("no such tag"), ContentRejected("not wasm")], ids=["missing", "bad"]
)
def test_missing_image_or_bad_content_says_nothing_about_the_source(
    breakers: CircuitBreakers, error: SourceNotFound | ContentRejected
) -> None:
    for _ in range(9):
        breakers.failed(KEY, error)
    breakers.check(KEY)


def test_what_the_server_asks_for_is_kept_from_the_first_time(
    breakers: CircuitBreakers, clock: Clock
) -> None:
    breakers.failed(KEY, SourceUnavailable("slow down", retry_after=20.0))
    with pytest.raises(SourceUnavailable):
        breakers.check(KEY)
    clock.now += 20.0
    breakers.check(KEY)


def test_no_server_stops_us_for_longer_than_the_maximum(
    breakers: CircuitBreakers, clock: Clock
) -> None:
    breakers.failed(KEY, SourceUnavailable("go away", retry_after=1e9))
    clock.now += 300.0
    breakers.check(KEY)


def test_message_does_not_change_while_the_state_does_not(
    breakers: CircuitBreakers, clock: Clock
) -> None:
    """It goes into statuses, and a status that changes is written."""
    messages = set()
    for _ in range(6):
        breakers.failed(KEY, DOWN)
        clock.now += 1.5
        try:
            breakers.check(KEY)
        except SourceUnavailable as error:
            messages.add(str(error))
    assert len(messages) == 1


def test_number_of_keys_is_bounded(breakers: CircuitBreakers) -> None:
    for number in range(10_050):
        breakers.failed(SourceKey("h", str(number), ""), SourceUnavailable("x"))
    assert len(breakers._states) == 10_000
