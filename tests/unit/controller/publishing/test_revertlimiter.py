"""A fight is ended after three rounds, whatever the other side changes; our own healing is no round."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autowasm.api import envoyfilter as envoyfilters
from autowasm.controller.publishing.revertlimiter import PUT_BACK_MOST, Fights
from autowasm.errors import AutoWasmError
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import autowasm, digest, record

KEY = ObjectKey("default", "test")
OWNER: dict[str, Any] = {"metadata": {"uid": "u", "generation": 1}}
A, B = digest("a"), digest("b")


def envoyfilter(*, heal: int = 0, sha256: str = A) -> dict[str, Any]:
    return envoyfilters.render(autowasm(), record(sha256=sha256), EnvoyFetch(), heal=heal)


def write(fights: Fights, wanted: dict[str, Any], live: dict[str, Any] | None) -> bool:
    """As the publisher does. Whether it was a round."""
    again = fights.puts_back(KEY, OWNER, wanted, live=live)
    fights.wrote(KEY, OWNER, wanted)
    if again:
        fights.count(KEY, OWNER)
    return again


@pytest.mark.parametrize("raises", [0, 1])
async def test_who_rewrites_it_is_left_after_three_rounds(raises: int) -> None:
    fights = Fights()
    assert not write(fights, envoyfilter(), None)
    for turn in range(1, PUT_BACK_MOST + 1):
        live = envoyfilter(heal=turn * raises)
        live["spec"]["priority"] = 99
        assert write(fights, envoyfilter(heal=turn * raises), live)
    with pytest.raises(AutoWasmError, match="left as it is") as caught:
        write(fights, envoyfilter(heal=9 * raises), envoyfilter(heal=9 * raises))
    assert caught.value.reason == "Mutated"


async def test_who_deletes_it_is_left_after_three_rounds() -> None:
    fights = Fights()
    assert not write(fights, envoyfilter(heal=1), None)
    for _ in range(PUT_BACK_MOST):
        assert write(fights, envoyfilter(heal=1), None)
    with pytest.raises(AutoWasmError, match="left as it is"):
        write(fights, envoyfilter(heal=1), None)


async def test_healing_is_no_round_and_ends_no_fight() -> None:
    fights = Fights()
    assert not write(fights, envoyfilter(), None)
    for heal in range(1, 9):
        assert not write(fights, envoyfilter(heal=heal), envoyfilter(heal=heal - 1))
    for _ in range(PUT_BACK_MOST):
        assert write(fights, envoyfilter(heal=8), envoyfilter(heal=3))
    assert not write(fights, envoyfilter(heal=9), envoyfilter(heal=8))
    with pytest.raises(AutoWasmError, match="left as it is"):
        write(fights, envoyfilter(heal=9), envoyfilter(heal=3))


@given(
    st.lists(st.sampled_from(["edit", "raise", "raise and edit", "lower", "delete", "break"])),
    st.integers(0, 3),
)
async def test_no_turn_of_another_makes_us_write_more_often(turns: list[str], healed: int) -> None:
    """`healed`: the count to which we healed it, which is written whatever the other side made of it."""
    fights = Fights()
    live: dict[str, Any] | None = None
    writes = 0
    for turn in ("begin", *turns):
        count = envoyfilters.heal_count_of(live, A) if live is not None else 0
        if turn == "delete" or live is None:
            live = None
        elif turn == "lower":
            live = envoyfilter()
        elif "raise" in turn:
            live = envoyfilter(heal=count + 1)
        if live is not None and "edit" in turn:
            live["spec"]["priority"] = 99
        if live is not None and turn == "break":
            live["spec"]["configPatches"][0]["patch"]["value"] = {}
        seen = envoyfilters.heal_count_of(live, A) if live is not None else 0
        wanted = envoyfilter(heal=max(seen, healed))
        try:
            if live == wanted:
                if fights.in_place(KEY, OWNER, wanted):
                    fights.count(KEY, OWNER)
                continue
            write(fights, wanted, live)
        except AutoWasmError:
            continue  # it is left as it is
        live, writes = copy.deepcopy(wanted), writes + 1
    # The first one, our healing, and the rounds.
    assert writes <= 2 + PUT_BACK_MOST


async def test_who_only_raises_the_count_is_told_of_after_three_times() -> None:
    fights = Fights()
    assert not fights.in_place(KEY, OWNER, envoyfilter(heal=7)), "what a leader before us left"
    assert not fights.in_place(KEY, OWNER, envoyfilter(heal=7))
    for turn in range(PUT_BACK_MOST):
        assert fights.in_place(KEY, OWNER, envoyfilter(heal=8 + turn))
        fights.count(KEY, OWNER)
    for heal in (10, 11):
        with pytest.raises(AutoWasmError, match="left as it is"):
            fights.in_place(KEY, OWNER, envoyfilter(heal=heal))
    again = {"metadata": {"uid": "u", "generation": 2}}
    assert not fights.in_place(KEY, again, envoyfilter(heal=12)), "the user asked again"


async def test_our_own_healing_whose_answer_was_lost_is_nobody_elses() -> None:
    fights = Fights()
    write(fights, envoyfilter(), None)
    assert not fights.puts_back(KEY, OWNER, envoyfilter(heal=1), live=envoyfilter())
    assert not fights.in_place(KEY, OWNER, envoyfilter(heal=1))


async def test_a_replica_that_leads_no_more_keeps_no_count() -> None:
    fights = Fights()
    for _ in range(1 + PUT_BACK_MOST):
        write(fights, envoyfilter(), None)
    fights.forget_all()
    assert not write(fights, envoyfilter(), None)


async def test_another_module_or_another_wish_of_the_user_begins_anew() -> None:
    fights = Fights()
    for _ in range(1 + PUT_BACK_MOST):
        write(fights, envoyfilter(), None)
    assert not write(fights, envoyfilter(sha256=B), envoyfilter())
    assert write(fights, envoyfilter(sha256=B), envoyfilter())
    again = {"metadata": {"uid": "u", "generation": 2}}
    assert not fights.puts_back(KEY, again, envoyfilter(sha256=B))
