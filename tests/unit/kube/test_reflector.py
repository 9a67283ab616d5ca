"""How a reflector lists, resumes and lists again: scripted servers, virtual time."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest

from autowasm.kube.errors import (
    ApiError,
    BadRequest,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    ServerError,
    TooLargeResourceVersion,
    TooManyRequests,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
)
from autowasm.kube.reflector import Reflector
from autowasm.kube.resources import ObjectKey
from autowasm.limits import KubeLimits
from tests.unit.kube.scripted import Pause, Script, bookmark, event, page

pytestmark = pytest.mark.looptime

LIMITS = KubeLimits()


class Memory:
    """A store that records calls."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, str] = {}
        self.replaced = 0

    @property
    def states(self) -> dict[str, str]:
        return {key.name: state for key, state in self.objects.items()}

    def stored(self, key: ObjectKey) -> str | None:
        return self.objects.get(key)

    async def replace(self, objects: Mapping[ObjectKey, str]) -> None:
        self.objects = dict(objects)
        self.replaced += 1

    def upsert(self, key: ObjectKey, new: str) -> None:
        self.objects[key] = new

    def delete(self, key: ObjectKey) -> None:
        self.objects.pop(key, None)


class ReflectorRecorder:
    """ReflectorMetrics that record calls."""

    def __init__(self) -> None:
        self.lists: list[str] = []
        self.ends: list[str] = []

    def listed(self, reason: str, objects: int) -> None:
        self.lists.append(reason)

    def watch_ended(self, reason: str) -> None:
        self.ends.append(reason)


class Run:
    """A reflector that has run for some virtual time against a script."""

    def __init__(self, *, streaming: bool = False, limits: KubeLimits = LIMITS) -> None:
        self.store = Memory()
        self.recorded = ReflectorRecorder()
        self._options = {"streaming": streaming}
        self._limits = limits

    async def through(self, script: Script, *, seconds: float = 100) -> Memory:
        self.reflector = Reflector(
            "things",
            list_watch=script,
            store=self.store,
            limits=self._limits,
            metrics=self.recorded,
            rng=random.Random(1),
            **self._options,
        )
        task = asyncio.create_task(self.reflector.run())
        await asyncio.sleep(seconds)
        assert not task.done(), task.result()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return self.store


async def test_lists_all_pages_then_watches_from_there() -> None:
    script = Script(page("a", rv="5", token="more"), page("b", rv="5"))
    store = await Run().through(script)
    assert store.states == {"a": "a", "b": "b"}
    assert store.replaced == 1
    assert script.order == [("list", ""), ("list", "more"), ("watch", "5")]


EXPIRED = [Pause(100), Expired("too old", code=410)]


def reuses(script: Script) -> list[bool]:
    return [request.may_reuse for request in script.requests if request.what != "watch"]


@pytest.mark.parametrize("streaming", [False, True], ids=["pages", "stream"])
async def test_a_list_after_the_first_may_use_stored_objects_again(streaming: bool) -> None:
    first, second = page("a", rv="5"), page("a", rv="9")
    lists = [[event("ADDED", "a", rv), bookmark(rv, end=True)] for rv in ("5", "9")]
    streams = [[*lists[0], *EXPIRED], [*lists[1], Pause()]]
    steps = streams if streaming else [first, EXPIRED, second]
    script = Script(*steps)
    await Run(streaming=streaming).through(script, seconds=300)
    assert reuses(script)[:2] == [False, True]
    assert script.reusable[0] == "a"


async def test_a_list_of_an_older_history_uses_nothing_again() -> None:
    """etcd was restored from a backup: equal resourceVersions no longer mean equal objects."""
    script = Script(page("a", rv="500"), EXPIRED, page("a", rv="7"), page("b", rv="8"))
    store = await Run().through(script, seconds=300)
    assert reuses(script) == [False, True, False]
    assert store.states == {"b": "b"}
    assert store.replaced == 2, "the older list was not taken"


async def test_a_server_that_is_behind_makes_the_list_use_nothing_again() -> None:
    behind = [TooLargeResourceVersion("from the future", code=504)]
    script = Script(page("a", rv="5"), behind, page("a", rv="9"))
    await Run().through(script)
    assert reuses(script) == [False, False]


async def test_applies_events_and_resumes_after_the_last_one() -> None:
    said = [
        event("ADDED", "b", "6"),
        event("MODIFIED", "a", "7", "new"),
        event("DELETED", "b", "9"),
    ]
    script = Script(page("a", rv="5"), [*said, Pause(200)])
    run = Run()
    store = await run.through(script, seconds=250)
    assert store.states == {"a": "new"}
    assert script.order[-1] == ("watch", "9")
    assert run.recorded.ends == ["timeout"]
    assert script.times[-1] == 200, "a watch that ended in order is resumed at once"


async def test_a_bookmark_moves_the_position_and_nothing_else() -> None:
    script = Script(page("a", rv="5"), [bookmark("50"), Pause(2)])
    store = await Run().through(script)
    assert store.states == {"a": "a"}
    assert script.order[-1] == ("watch", "50")


async def test_a_list_that_broke_off_changes_nothing() -> None:
    script = Script(
        page("a", rv="5"),
        Expired("gone", code=410),
        page("b", rv="9", token="more"),
        Expired("continue token too old", code=410),
        page("c", rv="12"),
    )
    run = Run()
    store = await run.through(script)
    assert store.states == {"c": "c"}
    assert store.replaced == 2
    assert run.recorded.lists == ["start", "Expired"]


async def test_relists_at_once_when_the_position_expired() -> None:
    script = Script(
        page("a", rv="5"), [Pause(100), Expired("too old", code=410)], page("b", rv="99")
    )
    run = Run()
    store = await run.through(script, seconds=150)
    assert store.states == {"b": "b"}
    assert script.order[1:] == [("watch", "5"), ("list", ""), ("watch", "99")]
    assert script.times[2] == 100


async def test_a_server_whose_every_watch_expires_is_not_hammered() -> None:
    steps = [step for _ in range(50) for step in (page("a", rv="5"), Expired("old", code=410))]
    script = Script(*steps)
    await Run().through(script, seconds=120)
    lists = [request.at for request in script.requests if request.what == "list"]
    assert 5 <= len(lists) <= 12
    gaps = [later - earlier for earlier, later in pairwise(lists)]
    assert gaps[0] >= 0.8
    assert max(gaps) > 10


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("connection refused"),
        TooManyRequests("slow down", code=429),
        Unauthorized("who are you", code=401),
        ServerError("sorry", code=500),
    ],
)
async def test_resumes_without_a_list_after(error: ApiError) -> None:
    script = Script(page("a", rv="5"), [event("ADDED", "b", "6"), error], error, error)
    run = Run()
    store = await run.through(script)
    assert store.replaced == 1
    assert script.order[1:] == [("watch", "5"), ("watch", "6"), ("watch", "6"), ("watch", "6")]
    gaps = [later.at - earlier.at for earlier, later in pairwise(script.requests[1:])]
    assert 0.8 <= gaps[0] <= 1.6
    assert gaps[0] < gaps[1] < gaps[2]


async def test_reflector_waits_for_the_retry_after_of_a_busy_server() -> None:
    script = Script(page("a", rv="5"), TooManyRequests("slow down", code=429, retry_after=42))
    await Run().through(script)
    assert script.times[2] == 42


@pytest.mark.parametrize(
    "error",
    [
        Forbidden("no watch for you", code=403),
        NotFound("no such resource", code=404),
        UnexpectedAnswer("half a page of HTML"),
        TooLargeResourceVersion("from the future", code=504),
    ],
)
async def test_relists_with_backoff_after(error: ApiError) -> None:
    script = Script(page("a", rv="5"), error, page("b", rv="9"))
    run = Run()
    store = await run.through(script)
    assert store.states == {"b": "b"}
    assert 0.8 <= script.times[2] <= 1.6
    assert run.recorded.lists == ["start", type(error).__name__]


async def test_relists_when_resuming_fails_for_a_minute() -> None:
    script = Script(page("a", rv="5"), *[ServerError("sorry", code=500)] * 7, page("b", rv="9"))
    run = Run()
    store = await run.through(script, seconds=300)
    assert run.recorded.lists == ["start", "ServerError"]
    assert store.states == {"b": "b"}


async def test_a_watch_that_ends_at_once_with_nothing_is_not_reopened_without_a_pause() -> None:
    script = Script(page("a", rv="5"), [], [])
    run = Run()
    await run.through(script, seconds=5)
    assert run.recorded.ends == ["VeryShortWatch", "VeryShortWatch"]
    assert 0.8 <= script.times[2] <= 1.6


async def test_relists_after_three_watches_that_brought_nothing() -> None:
    script = Script(page("a", rv="5"), [Pause(290)], [Pause(290)], [Pause(290)], page("b", rv="9"))
    run = Run()
    store = await run.through(script, seconds=1000)
    assert [what for what, _ in script.order] == [
        "list",
        "watch",
        "watch",
        "watch",
        "list",
        "watch",
    ]
    assert run.recorded.lists == ["start", "StaleWatch"]
    assert store.states == {"b": "b"}


async def test_bookmarks_keep_a_quiet_watch_from_being_taken_for_a_stale_one() -> None:
    quiet = [Pause(60), bookmark("5"), Pause(60), bookmark("5")]
    script = Script(page("a", rv="5"), quiet, quiet, quiet, quiet)
    run = Run()
    await run.through(script, seconds=600)
    assert run.recorded.lists == ["start"]


async def test_a_frozen_watch_is_cut_three_minutes_after_the_last_bookmark() -> None:
    script = Script(page("a", rv="5"), [bookmark("6"), Pause()])
    run = Run()
    await run.through(script, seconds=200)
    assert run.recorded.ends == ["WatchFrozen"]
    assert script.order[-1] == ("watch", "6")
    assert 180.8 <= script.times[2] <= 181.6


async def test_a_server_without_bookmarks_may_be_silent_for_the_whole_watch() -> None:
    script = Script(page("a", rv="5"), [Pause()])
    run = Run()
    await run.through(script, seconds=700)
    assert run.recorded.ends == ["WatchFrozen"]
    assert 330 <= script.silences[0] <= 630


async def test_watches_last_once_to_twice_their_timeout_at_random() -> None:
    script = Script(page("a", rv="5"))
    limits = replace(LIMITS, watch_timeout=100.0, watch_grace=10.0)
    await Run(limits=limits).through(script)
    assert 110 <= script.silences[0] <= 210


async def test_keeps_trying_when_nothing_can_be_listed() -> None:
    script = Script(*[Unreachable("refused")] * 3, page("a", rv="5"))
    store = await Run().through(script)
    assert store.states == {"a": "a"}
    assert len(script.requests) == 5


async def test_a_list_without_a_resource_version_is_refused() -> None:
    script = Script(page("a", rv=""), page("b", rv="3"))
    store = await Run().through(script)
    assert store.states == {"b": "b"}


async def test_reflector_reports_the_age_of_the_last_event() -> None:
    run = Run()
    script = Script(page("a", rv="5"), [Pause(10), bookmark("6"), Pause(100)])
    task = asyncio.create_task(run.through(script))
    await asyncio.sleep(0.1)
    assert run.reflector.last_event_age == pytest.approx(0.1, abs=0.01)
    await asyncio.sleep(30)
    assert run.reflector.last_event_age == pytest.approx(20.1, abs=0.01)
    await task


class TestStreamingList:
    """`sendInitialEvents`: one request that lists and continues as a watch."""

    async def test_fills_the_store_at_the_bookmark_and_keeps_the_stream(self) -> None:
        said = [
            event("ADDED", "b", "3"),
            event("ADDED", "a", "2"),
            bookmark("5", end=True),
            event("DELETED", "b", "7"),
            Pause(2),
        ]
        script = Script(said)
        run = Run(streaming=True)
        store = await run.through(script)
        assert store.states == {"a": "a"}
        assert store.replaced == 1
        assert script.order == [("stream", ""), ("watch", "7")]

    async def test_object_that_is_deleted_before_the_list_is_complete_is_not_stored(self) -> None:
        said = [
            event("ADDED", "a", "2"),
            event("ADDED", "b", "3"),
            bookmark("3"),
            event("DELETED", "a", "4"),
            bookmark("5", end=True),
            Pause(2),
        ]
        script = Script(said)
        store = await Run(streaming=True).through(script)
        assert store.states == {"b": "b"}
        assert script.order == [("stream", ""), ("watch", "5")]

    async def test_nothing_is_stored_before_it_is_complete(self) -> None:
        script = Script([event("ADDED", "a", "2"), Unreachable("cut")], page("b", rv="9"))
        store = await Run(streaming=True).through(script)
        assert store.states == {"b": "b"}
        assert script.order == [("stream", ""), ("list", ""), ("watch", "9")]

    @pytest.mark.parametrize(
        "error",
        [
            BadRequest("what?", code=400),
            Invalid("sendInitialEvents is forbidden", code=422),
            ApiError("method not allowed", code=405),
        ],
    )
    async def test_a_server_that_does_not_offer_it_is_listed_at_once_and_always(
        self, error: ApiError
    ) -> None:
        script = Script(error, page("a", rv="5"), Expired("old", code=410), page("b", rv="9"))
        store = await Run(streaming=True).through(script)
        assert store.states == {"b": "b"}
        assert [what for what, _ in script.order] == ["stream", "list", "watch", "list", "watch"]
        assert script.times[1] == 0

    async def test_server_that_ignores_streaming_lists_is_detected_in_ten_seconds(self) -> None:
        script = Script([event("ADDED", "a", "2"), Pause()], page("a", rv="5"))
        store = await Run(streaming=True).through(script)
        assert store.states == {"a": "a"}
        assert script.times[1] == 10

    async def test_no_right_to_watch_still_lists(self) -> None:
        script = Script(Forbidden("no", code=403), page("a", rv="5"))
        store = await Run(streaming=True).through(script)
        assert store.states == {"a": "a"}

    async def test_a_missing_resource_does_not_switch_it_off(self) -> None:
        missing = NotFound("no such resource", code=404)
        script = Script(
            missing, missing, [event("ADDED", "a", "2"), bookmark("5", end=True), Pause()]
        )
        store = await Run(streaming=True).through(script)
        assert store.states == {"a": "a"}
        assert [what for what, _ in script.order] == ["stream", "list", "stream"]
