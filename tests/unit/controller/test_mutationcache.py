"""The object between a write and its event in the watch."""

import asyncio
from typing import Any

import pytest

from autowasm.controller.mutationcache import KEPT, MutationCache
from autowasm.kube.resources import ObjectKey

pytestmark = pytest.mark.looptime

KEY = ObjectKey("default", "test")


def version(number: int, *, generation: int = 1) -> dict[str, Any]:
    return {"metadata": {"uid": "u", "resourceVersion": str(number), "generation": generation}}


async def test_shows_own_write_until_the_informer_does() -> None:
    stored: dict[ObjectKey, Any] = {}
    overlay = MutationCache(stored.get)
    overlay.wrote(KEY, version(2))
    assert overlay.get(KEY) == version(2)
    assert overlay.observed(KEY, version(1)), "older: no reconcile is needed"
    assert overlay.get(KEY) == version(2)
    stored[KEY] = version(2)
    assert overlay.observed(KEY, version(2)), "our own write"
    stored[KEY] = version(3)
    assert not overlay.observed(KEY, version(3))
    assert overlay.get(KEY) == version(3)


async def test_forgets_a_write_that_the_informer_never_shows() -> None:
    overlay = MutationCache({}.get)
    overlay.wrote(KEY, version(2))
    await asyncio.sleep(KEPT)
    assert overlay.get(KEY) is None


async def test_does_not_show_an_object_deleted_during_a_request() -> None:
    overlay = MutationCache({}.get)
    with overlay.in_flight(KEY):
        assert not overlay.observed(KEY, None)
        overlay.wrote(KEY, version(2))  # the answer is of before
    assert overlay.get(KEY) is None
    with overlay.in_flight(KEY):
        overlay.wrote(KEY, version(5))
    assert overlay.get(KEY) == version(5)
    assert not overlay.observed(KEY, None)
    assert overlay.get(KEY) is None


async def test_event_before_the_answer_of_its_write_is_an_echo() -> None:
    changed: list[ObjectKey] = []
    overlay = MutationCache({}.get, changed=changed.append)
    with overlay.in_flight(KEY):
        assert overlay.observed(KEY, version(2))
        overlay.wrote(KEY, version(2))
    assert changed == []
    assert not overlay.observed(KEY, version(3)), "nothing is in flight now"


@pytest.mark.parametrize("answered", [True, False])
async def test_change_of_another_client_during_a_write_is_reported_after_it(
    *, answered: bool
) -> None:
    changed: list[ObjectKey] = []
    overlay = MutationCache({}.get, changed=changed.append)
    with overlay.in_flight(KEY):
        overlay.observed(KEY, version(2))
        overlay.observed(KEY, version(3))
        if answered:
            overlay.wrote(KEY, version(2))
        assert changed == [], "the answer may still come"
    assert changed == [KEY]


async def test_change_before_our_write_is_reported() -> None:
    """The reconcile that writes may have read an older version."""
    changed: list[ObjectKey] = []
    overlay = MutationCache({}.get, changed=changed.append)
    with overlay.in_flight(KEY):
        overlay.observed(KEY, version(2))
        overlay.wrote(KEY, version(3))
    assert changed == [KEY]


async def test_failed_write_reports_what_was_shown_meanwhile() -> None:
    changed: list[ObjectKey] = []
    overlay = MutationCache({}.get, changed=changed.append)
    with pytest.raises(OSError), overlay.in_flight(KEY):  # noqa: PT011 any error
        overlay.observed(KEY, version(2))
        raise OSError
    assert changed == [KEY]


async def test_edited_spec_does_not_wait_for_the_answer_of_a_status_write() -> None:
    changed: list[ObjectKey] = []
    overlay = MutationCache({}.get, changed=changed.append)
    with overlay.in_flight(KEY, read=version(1)):
        assert overlay.observed(KEY, version(2))
        assert not overlay.observed(KEY, version(3, generation=2))
    assert changed == [], "reported at once"


@pytest.mark.parametrize(
    "other", [{"uid": "another"}, {"annotations": {"wasm.tcm.io/rollout": "abort"}}]
)
async def test_other_metadata_do_not_wait_for_the_answer_of_a_status_write(
    other: dict[str, object],
) -> None:
    changed: list[ObjectKey] = []
    overlay = MutationCache({}.get, changed=changed.append)
    read = version(1)
    with overlay.in_flight(KEY, read=read):
        assert not overlay.observed(KEY, {"metadata": {**version(2)["metadata"], **other}})
    assert changed == [], "reported at once"


async def test_recreated_object_does_not_wait_for_the_answer_about_the_old_one() -> None:
    changed: list[ObjectKey] = []
    overlay = MutationCache({}.get, changed=changed.append)
    with overlay.in_flight(KEY, read={"metadata": {**version(1)["metadata"], "uid": "old"}}):
        assert not overlay.observed(KEY, None)
        assert not overlay.observed(KEY, {"metadata": {**version(9)["metadata"], "uid": "new"}})
    assert changed == []


async def test_deletion_during_a_write_is_reported_at_once_and_once() -> None:
    changed: list[ObjectKey] = []
    overlay = MutationCache({}.get, changed=changed.append)
    with overlay.in_flight(KEY):
        assert overlay.observed(KEY, version(2))
        assert not overlay.observed(KEY, None)
    assert changed == []


async def test_echoes_of_two_writers_of_one_object_are_recognised() -> None:
    changed: list[ObjectKey] = []
    overlay = MutationCache({}.get, changed=changed.append)
    with overlay.in_flight(KEY):
        with overlay.in_flight(KEY):
            overlay.observed(KEY, version(2))
            overlay.observed(KEY, version(3))
            overlay.wrote(KEY, version(2))
        assert changed == [], "the other call is in flight"
        overlay.wrote(KEY, version(3))
    assert changed == []


async def test_deletion_during_two_concurrent_writes_wins_over_their_answers() -> None:
    overlay = MutationCache({}.get)
    with overlay.in_flight(KEY):
        with overlay.in_flight(KEY):
            overlay.observed(KEY, None)
        overlay.wrote(KEY, version(2))  # sent before it was deleted
    assert overlay.get(KEY) is None
    with overlay.in_flight(KEY):
        overlay.wrote(KEY, version(5))
    assert overlay.get(KEY) == version(5)


async def test_does_not_show_an_object_deleted_while_no_watch_ran() -> None:
    """Created by us, deleted by another client; then a list without it: no informer delivers an event."""
    position: str | None = None
    overlay = MutationCache({}.get, lambda: position)
    overlay.wrote(KEY, version(5))
    position = "4"
    assert overlay.get(KEY) == version(5), "the list is older than the write"
    position = "5"
    assert overlay.get(KEY) is None


async def test_answer_that_comes_after_the_event_of_the_deletion_shows_nothing() -> None:
    overlay = MutationCache({}.get, lambda: "7")
    overlay.wrote(KEY, version(6))  # sent before, without `in_flight`
    assert overlay.get(KEY) is None


@pytest.mark.parametrize("position", [None, "opaque"])
async def test_versions_that_cannot_be_compared_prove_nothing(position: str | None) -> None:
    overlay = MutationCache({}.get, lambda: position)
    overlay.wrote(KEY, version(5))
    assert overlay.get(KEY) == version(5)
    await asyncio.sleep(KEPT)
    assert overlay.get(KEY) is None


async def test_versions_that_are_no_numbers_are_compared_for_equality() -> None:
    def opaque(version: str, *, uid: str = "u") -> dict[str, Any]:
        return {"metadata": {"uid": uid, "resourceVersion": version}}

    overlay = MutationCache({}.get)
    overlay.wrote(KEY, opaque("b"))
    overlay.observed(KEY, opaque("a"))
    assert overlay.get(KEY) == opaque("b"), "which came first cannot be told"
    overlay.observed(KEY, opaque("b"))
    assert overlay.get(KEY) is None, "the informer shows it"
    overlay.wrote(KEY, opaque("c"))
    overlay.observed(KEY, opaque("d", uid="another"))
    assert overlay.get(KEY) is None, "the object was made again"
