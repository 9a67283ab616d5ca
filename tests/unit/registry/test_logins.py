"""How often a registry is shown a login that it does not take."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from autowasm.errors import SourceDenied, SourceUnavailable
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.net.transfer import Transfer, run_transfer
from autowasm.registry.auth import LoginThrottle
from autowasm.registry.credentials import Credential
from tests.fakes.clocks import FakeClock

LIMITS = Limits(login_refusals=2, login_pause=300, max_login_pause=600)
BOB = Credential("bob", "s3cret")
ROTATED = Credential("bob", "n3w")


def show(logins: LoginThrottle, *, taken: bool, credential: Credential | None = BOB) -> None:
    with logins.attempt("r.example", credential) as login:
        if taken:
            login.accepted()
        else:
            login.refused()


def test_a_refused_login_is_paused_longer_each_time() -> None:
    clock = FakeClock(0.0)
    logins = LoginThrottle(LIMITS, clock=clock)
    for _ in range(2):
        show(logins, taken=False)
    for pause in (330.0, 660.0, 660.0):
        with pytest.raises(SourceDenied, match="account is not locked") as caught:
            show(logins, taken=True)
        assert "s3cret" not in str(caught.value)
        clock.now += pause
        show(logins, taken=False)


def test_a_rotated_secret_another_host_and_no_login_are_not_held_back() -> None:
    logins = LoginThrottle(LIMITS, clock=FakeClock(0.0))
    for _ in range(2):
        show(logins, taken=False)
    show(logins, taken=True, credential=ROTATED)
    show(logins, taken=False, credential=None)
    with logins.attempt("other.example", BOB):
        pass


def test_success_forgets_refusals() -> None:
    logins = LoginThrottle(LIMITS, clock=FakeClock(0.0))
    for taken in (False, True, False, True, False, True):
        show(logins, taken=taken)


def test_a_login_that_was_taken_may_be_refused_later() -> None:
    logins = LoginThrottle(LIMITS, clock=FakeClock(0.0))
    show(logins, taken=True)
    for _ in range(2):
        logins.refused("r.example", BOB)
    with pytest.raises(SourceDenied):
        show(logins, taken=True)


def test_an_attempt_without_outcome_counts_as_none() -> None:
    logins = LoginThrottle(LIMITS, clock=FakeClock(0.0))
    for _ in range(5):
        with logins.attempt("r.example", BOB):
            pass


async def test_a_login_not_yet_accepted_is_sent_by_one_request_at_a_time() -> None:
    """Ten that would all be refused: the account sees two."""
    logins, shown, release = LoginThrottle(LIMITS), [0], threading.Event()

    def work(_: Transfer) -> None:
        with logins.attempt("r.example", BOB) as login:
            shown[0] += 1
            assert release.wait(60)
            login.refused()

    with Pools(transfers=10) as pools:
        runs = [
            asyncio.create_task(
                run_transfer(pools.transfer, work, what="x", deadline=10, limits=LIMITS),
                name=f"run {n}",
            )
            for n in range(10)
        ]
        async with asyncio.timeout(30):
            while not shown[0]:
                await asyncio.sleep(0.01)
        release.set()
        results = await asyncio.gather(*runs, return_exceptions=True)
    assert shown == [2]
    assert sum(isinstance(result, SourceDenied) for result in results) == 8


def test_number_of_logins_that_are_remembered_is_bounded() -> None:
    logins = LoginThrottle(LIMITS, clock=FakeClock(0.0))
    for number in range(10_001):
        for _ in range(2):
            with logins.attempt(f"r{number}.example", BOB) as login:
                login.refused()
    with logins.attempt("r0.example", BOB):
        pass  # it was dropped
    with pytest.raises(SourceDenied), logins.attempt("r10000.example", BOB):
        pass


async def test_transfer_that_ends_while_it_waits_for_another_login_harms_neither(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logins, showing, release = LoginThrottle(LIMITS), threading.Event(), threading.Event()

    def first(_: Transfer) -> str:
        with logins.attempt("r.example", BOB) as login:
            showing.set()
            assert release.wait(60)
            login.accepted()
        return "first"

    def later(_: Transfer) -> str:
        with logins.attempt("r.example", BOB):
            return "later"

    with Pools(transfers=3) as pools:

        def run(work: Callable[[Transfer], str], deadline: float) -> Coroutine[Any, Any, str]:
            return run_transfer(pools.transfer, work, what="x", deadline=deadline, limits=LIMITS)

        shows = asyncio.create_task(run(first, 60))
        assert await asyncio.to_thread(showing.wait, 60)
        with pytest.raises(SourceUnavailable):
            await run(later, 0.1)
        release.set()
        assert await shows == "first"
        assert await run(later, 60) == "later"
    assert not caplog.records
