"""Events of handlers, and when an informer counts as synced."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from autowasm.kube.errors import Expired
from autowasm.kube.informer import Informer
from autowasm.kube.resources import ObjectKey
from autowasm.limits import KubeLimits
from tests.unit.kube.scripted import Pause, Script, event, key, page

pytestmark = pytest.mark.looptime


class RecordingHandler:
    """A handler that records events, and checks that the store is ahead of them."""

    def __init__(self, informer: Informer[str]) -> None:
        self._informer = informer
        self.facts: list[tuple[str, ...]] = []
        self.synced: list[bool] = []

    def on_add(self, key: ObjectKey, new: str, /, *, initial: bool) -> None:
        assert self._informer.store.get(key) == new
        self._note("add", new, "initial" if initial else "live")

    def on_update(self, key: ObjectKey, old: str, new: str, /) -> None:
        assert self._informer.store.get(key) == new
        self._note("update", old, new)

    def on_delete(self, key: ObjectKey, old: str, /) -> None:
        assert self._informer.store.get(key) is None
        self._note("delete", old)

    def _note(self, *fact: str) -> None:
        self.facts.append(fact)
        self.synced.append(self._informer.has_synced)


@asynccontextmanager
async def running(script: Script, *, resync: float | None = None) -> AsyncIterator[Informer[str]]:
    informer: Informer[str] = Informer(
        "things",
        list_watch=script,
        limits=KubeLimits(),
        resync=resync,
        rng=random.Random(1),
        streaming=False,
    )
    task = asyncio.create_task(informer.run())
    try:
        yield informer
        assert not task.done(), task.result()
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_handlers_receive_every_change_after_the_store_has_it() -> None:
    said = [
        event("ADDED", "b", "6"),
        event("MODIFIED", "a", "7", "new"),
        event("MODIFIED", "a", "8", "new"),
        event("DELETED", "b", "9"),
        Pause(),
    ]
    async with running(Script(page("a", rv="5"), said)) as informer:
        handler = RecordingHandler(informer)
        informer.add_handler(handler)
        await asyncio.sleep(1)
        assert handler.facts == [
            ("add", "a", "initial"),
            ("add", "b", "live"),
            ("update", "a", "new"),
            ("delete", "b"),
        ]
        assert list(informer.store.values()) == ["new"]


async def test_synced_means_stored_and_delivered() -> None:
    async with running(Script(page("a", "b", rv="5"))) as informer:
        handler = RecordingHandler(informer)
        informer.add_handler(handler)
        assert not informer.has_synced
        await asyncio.wait_for(informer.wait_synced(), 1)
        assert handler.facts == [("add", "a", "initial"), ("add", "b", "initial")]
        assert handler.synced == [False, False]
        assert informer.has_synced


async def test_object_that_vanished_while_disconnected_is_reported_as_deleted() -> None:
    script = Script(
        page("a", "b", rv="5"), [Pause(60), Expired("old", code=410)], page("b", rv="9")
    )
    async with running(script) as informer:
        handler = RecordingHandler(informer)
        informer.add_handler(handler)
        await asyncio.sleep(100)
        assert handler.facts[2:] == [("delete", "a")]


async def test_one_that_runs_again_is_synced_once_it_has_listed_again() -> None:
    script = Script(page("a", "b", rv="5"), [Pause()], page("b", "c", rv="90"), [Pause()])
    async with running(script) as informer:
        await informer.wait_synced()
    assert not informer.has_synced
    task = asyncio.create_task(informer.run())
    await informer.wait_synced()
    assert set(informer.store) == {key("b"), key("c")}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_late_handler_receives_the_existing_objects() -> None:
    async with running(Script(page("a", rv="5"))) as informer:
        await informer.wait_synced()
        handler = RecordingHandler(informer)
        informer.add_handler(handler)
        assert handler.facts == [("add", "a", "initial")]


async def test_a_resync_delivers_the_store_again() -> None:
    async with running(Script(page("a", rv="5")), resync=600) as informer:
        handler = RecordingHandler(informer)
        informer.add_handler(handler)
        await asyncio.sleep(599)
        assert len(handler.facts) == 1
        await asyncio.sleep(62)
        assert handler.facts[1:] == [("update", "a", "a")]


async def test_a_handler_that_raises_stops_neither_the_others_nor_the_informer() -> None:
    class Broken(RecordingHandler):
        def on_add(self, key: ObjectKey, new: str, /, *, initial: bool) -> None:
            raise ZeroDivisionError

    async with running(Script(page("a", rv="5"), [event("ADDED", "b", "6"), Pause()])) as informer:
        handler = RecordingHandler(informer)
        informer.add_handler(Broken(informer))
        informer.add_handler(handler)
        await asyncio.sleep(1)
        assert handler.facts == [("add", "a", "initial"), ("add", "b", "live")]


async def test_informer_reports_the_age_of_its_last_event() -> None:
    async with running(Script(page("a", rv="5"))) as informer:
        assert informer.last_event_age is None
        await asyncio.sleep(5)
        assert informer.last_event_age == pytest.approx(5, abs=0.1)
