"""Reverts end after three rounds, for any change of the other client; a resend of our own is no round."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.api import envoyfilter as envoyfilters
from autowasm.controller.revertlimiter import MAX_REVERTS, RevertLimiter
from autowasm.errors import AutoWasmError
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import autowasm, digest, record

KEY = ObjectKey("default", "test")
OWNER: dict[str, Any] = {"metadata": {"uid": "u", "generation": 1}}
A, B = digest("a"), digest("b")


def envoyfilter(*, resend: int = 0, sha256: str = A) -> dict[str, Any]:
    return envoyfilters.render(autowasm(), record(sha256=sha256), EnvoyFetch(), resend=resend)


def write(
    revert_limiter: RevertLimiter, wanted: dict[str, Any], live: dict[str, Any] | None
) -> bool:
    """As the publisher does. Whether it was a round."""
    again = revert_limiter.is_revert(KEY, OWNER, wanted, live=live)
    revert_limiter.wrote(KEY, OWNER, wanted)
    if again:
        revert_limiter.count(KEY, OWNER)
    return again


@pytest.mark.parametrize("raises", [0, 1])
async def test_reverts_of_a_rewritten_envoyfilter_stop_at_the_limit(raises: int) -> None:
    revert_limiter = RevertLimiter()
    assert not write(revert_limiter, envoyfilter(), None)
    for turn in range(1, MAX_REVERTS + 1):
        live = envoyfilter(resend=turn * raises)
        live["spec"]["priority"] = 99
        assert write(revert_limiter, envoyfilter(resend=turn * raises), live)
    with pytest.raises(AutoWasmError, match="no longer reverts it") as caught:
        write(revert_limiter, envoyfilter(resend=9 * raises), envoyfilter(resend=9 * raises))
    assert caught.value.reason == "Mutated"


async def test_reverts_of_a_deleted_envoyfilter_stop_at_the_limit() -> None:
    revert_limiter = RevertLimiter()
    assert not write(revert_limiter, envoyfilter(resend=1), None)
    for _ in range(MAX_REVERTS):
        assert write(revert_limiter, envoyfilter(resend=1), None)
    with pytest.raises(AutoWasmError, match="no longer reverts it"):
        write(revert_limiter, envoyfilter(resend=1), None)


async def test_resend_is_no_revert_and_does_not_reset_the_revert_count() -> None:
    revert_limiter = RevertLimiter()
    assert not write(revert_limiter, envoyfilter(), None)
    for resend in range(1, 9):
        assert not write(revert_limiter, envoyfilter(resend=resend), envoyfilter(resend=resend - 1))
    for _ in range(MAX_REVERTS):
        assert write(revert_limiter, envoyfilter(resend=8), envoyfilter(resend=3))
    assert not write(revert_limiter, envoyfilter(resend=9), envoyfilter(resend=8))
    with pytest.raises(AutoWasmError, match="no longer reverts it"):
        write(revert_limiter, envoyfilter(resend=9), envoyfilter(resend=3))


@given(
    st.lists(st.sampled_from(["edit", "raise", "raise and edit", "lower", "delete", "break"])),
    st.integers(0, 3),
)
async def test_number_of_reverts_is_bounded_for_any_change_of_another_client(
    iterations: list[str], resent: int
) -> None:
    """`resent`: the count of resends that we wrote, independent of the other client's changes."""
    revert_limiter = RevertLimiter()
    live: dict[str, Any] | None = None
    writes = 0
    for turn in ("begin", *iterations):
        count = envoyfilters.resend_count_of(live, A) if live is not None else 0
        if turn == "delete" or live is None:
            live = None
        elif turn == "lower":
            live = envoyfilter()
        elif "raise" in turn:
            live = envoyfilter(resend=count + 1)
        if live is not None and "edit" in turn:
            live["spec"]["priority"] = 99
        if live is not None and turn == "break":
            live["spec"]["configPatches"][0]["patch"]["value"] = {}
        seen = envoyfilters.resend_count_of(live, A) if live is not None else 0
        wanted = envoyfilter(resend=max(seen, resent))
        try:
            if live == wanted:
                if revert_limiter.in_place(KEY, OWNER, wanted):
                    revert_limiter.count(KEY, OWNER)
                continue
            write(revert_limiter, wanted, live)
        except AutoWasmError:
            continue  # it is left as it is
        live, writes = copy.deepcopy(wanted), writes + 1
    # The first one, our resend, and the rounds.
    assert writes <= 2 + MAX_REVERTS


async def test_client_that_only_raises_the_count_is_reported_after_three_times() -> None:
    revert_limiter = RevertLimiter()
    assert not revert_limiter.in_place(KEY, OWNER, envoyfilter(resend=7)), (
        "what a leader before us left"
    )
    assert not revert_limiter.in_place(KEY, OWNER, envoyfilter(resend=7))
    for turn in range(MAX_REVERTS):
        assert revert_limiter.in_place(KEY, OWNER, envoyfilter(resend=8 + turn))
        revert_limiter.count(KEY, OWNER)
    for resend in (10, 11):
        with pytest.raises(AutoWasmError, match="no longer reverts it"):
            revert_limiter.in_place(KEY, OWNER, envoyfilter(resend=resend))
    again = {"metadata": {"uid": "u", "generation": 2}}
    assert not revert_limiter.in_place(KEY, again, envoyfilter(resend=12)), "the user asked again"


async def test_own_resend_with_a_lost_answer_counts_as_no_revert() -> None:
    revert_limiter = RevertLimiter()
    write(revert_limiter, envoyfilter(), None)
    assert not revert_limiter.is_revert(KEY, OWNER, envoyfilter(resend=1), live=envoyfilter())
    assert not revert_limiter.in_place(KEY, OWNER, envoyfilter(resend=1))


async def test_a_replica_that_leads_no_more_keeps_no_count() -> None:
    revert_limiter = RevertLimiter()
    for _ in range(1 + MAX_REVERTS):
        write(revert_limiter, envoyfilter(), None)
    revert_limiter.forget_all()
    assert not write(revert_limiter, envoyfilter(), None)


async def test_another_module_or_generation_resets_the_revert_count() -> None:
    revert_limiter = RevertLimiter()
    for _ in range(1 + MAX_REVERTS):
        write(revert_limiter, envoyfilter(), None)
    assert not write(revert_limiter, envoyfilter(sha256=B), envoyfilter())
    assert write(revert_limiter, envoyfilter(sha256=B), envoyfilter())
    again = {"metadata": {"uid": "u", "generation": 2}}
    assert not revert_limiter.is_revert(KEY, again, envoyfilter(sha256=B))
