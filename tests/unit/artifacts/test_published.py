import asyncio

import pytest

from autowasm.api.record import Record
from autowasm.artifacts import published as module
from autowasm.artifacts.published import Origin, PublishedModules
from autowasm.artifacts.source import FetchRequest
from autowasm.blobs.pins import Pins
from autowasm.errors import SourceNotFound, SourceUnavailable
from tests.fakes.autowasms import IMAGE, autowasm, digest, record

A, B = digest("a"), digest("b")


class Fetcher:
    """Answers by namespace: None for a success; namespaces that begin with `hanging` get no answer."""

    def __init__(self, **answers: Exception | None) -> None:
        self.answers = answers
        self.requests: list[FetchRequest] = []
        self.cancelled: list[str] = []

    async def fetch_at_source(self, request: FetchRequest) -> Record:
        self.requests.append(request)
        answer = self.answers.get(request.namespace)
        if request.namespace.startswith("hanging"):
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.append(request.namespace)
        await asyncio.sleep(0)
        if answer is not None:
            raise answer
        assert request.record is not None
        return request.record


def modules(fetcher: Fetcher) -> PublishedModules:
    return PublishedModules(fetcher)  # type: ignore[arg-type]


def origin(namespace: str = "ok", *, sha256: str = A, known: bool = True) -> Origin:
    source = autowasm(image=IMAGE).spec.filter.source if known else None
    known_record = record(sha256=sha256) if known else None
    return Origin(namespace, sha256, known_record, source, "pull" if known else None)


def test_digest_is_known_while_any_owner_names_it() -> None:
    published = modules(Fetcher())
    published.set("x/1", (origin(), origin(sha256=B)))
    published.set("x/2", (origin(),))
    assert published.is_known(A)
    published.set("x/1", (origin(sha256=B),))
    assert published.is_known(A)
    published.remove("x/2")
    assert not published.is_known(A)
    assert published.is_known(B)
    published.remove("x/1")
    published.remove("x/1")
    assert not published.is_known(B)


def test_pins_published_modules_and_keeps_those_of_a_history() -> None:
    pins = Pins()
    published = PublishedModules(Fetcher(), pins=pins)  # type: ignore[arg-type]
    published.set("x/1", (origin("x"),), history=[A, B])
    published.set("y/1", (origin("y"),))
    assert set(pins.published_by("x")) == set(pins.published_by("y")) == {A}
    assert not pins.is_published(B)
    assert pins.is_kept(B)
    assert not published.is_known(B)
    published.remove("x/1")
    published.set("y/1", ())
    assert not pins.is_published(A)
    assert not pins.is_kept(B)


async def test_waits_until_a_digest_is_known() -> None:
    published = modules(Fetcher())
    waiting = [asyncio.create_task(published.wait_known(A)) for _ in range(2)]
    other = asyncio.create_task(published.wait_known(B))
    await asyncio.sleep(0)
    published.set("x/1", (origin(),))
    await asyncio.gather(*waiting)
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert not published._waiters
    await published.wait_known(A)


async def test_fills_with_exactly_the_record() -> None:
    fetcher = Fetcher()
    published = modules(fetcher)
    published.set("x/1", (origin(), origin(sha256=B)))
    await published.fill(A)
    (request,) = fetcher.requests
    assert (request.namespace, request.secret, request.record) == ("ok", "pull", record(sha256=A))


async def test_origins_that_fail_are_followed_by_others() -> None:
    fetcher = Fetcher(one=SourceNotFound("gone"))
    published = modules(fetcher)
    published.set("x/1", (origin("one"),))
    published.set("x/2", (origin("two"),))
    await published.fill(A)
    assert [request.namespace for request in fetcher.requests] == ["one", "two"]


async def test_last_failure_is_raised() -> None:
    published = modules(Fetcher(one=SourceNotFound("gone"), two=SourceUnavailable("down")))
    published.set("x/1", (origin("one"),))
    published.set("x/2", (origin("two"),))
    with pytest.raises(SourceUnavailable, match="down"):
        await published.fill(A)


async def test_forged_record_causes_no_fetch() -> None:
    fetcher = Fetcher()
    published = modules(fetcher)
    published.set("x/1", (origin(known=False),))
    with pytest.raises(SourceUnavailable, match="no source is known for"):
        await published.fill(A)
    assert not fetcher.requests


@pytest.mark.looptime
async def test_hanging_origin_of_one_tenant_does_not_keep_the_module_from_another() -> None:
    fetcher = Fetcher()
    published = modules(fetcher)
    published.set("a/1", (origin("hanging"),))
    published.set("b/1", (origin("ok"),))
    begin = asyncio.get_running_loop().time()
    await published.fill(A)
    assert asyncio.get_running_loop().time() - begin == module.NEXT_ORIGIN_AFTER
    assert fetcher.cancelled == ["hanging"]


async def test_same_origin_of_many_owners_is_asked_once() -> None:
    fetcher = Fetcher(one=SourceUnavailable("down"))
    published = modules(fetcher)
    for number in range(5):
        published.set(f"one/{number}", (origin("one"),))
    with pytest.raises(SourceUnavailable):
        await published.fill(A)
    assert len(fetcher.requests) == 1


async def test_fill_succeeds_although_an_owner_is_removed_meanwhile() -> None:
    published = modules(Fetcher(one=SourceUnavailable("down")))
    published.set("x/1", (origin("one"),))
    published.set("x/2", (origin("two"),))
    filling = asyncio.create_task(published.fill(A))
    await asyncio.sleep(0)
    published.remove("x/2")
    await filling


class Peers:
    """Has `stored`."""

    def __init__(self, *stored: str) -> None:
        self.stored = stored
        self.requests: list[str] = []

    async def copy(self, sha256: str) -> bool:
        self.requests.append(sha256)
        return sha256 in self.stored

    seek = copy


async def test_fill_queries_the_peers_before_any_origin() -> None:
    fetcher, peers = Fetcher(), Peers(A)
    published = PublishedModules(fetcher, peers=peers)  # type: ignore[arg-type]
    published.set("x/1", (origin(), origin(sha256=B)))
    await published.fill(A)
    assert fetcher.requests == []
    await published.fill(B)
    assert [request.record and request.record.sha256 for request in fetcher.requests] == [B]
    assert peers.requests == [A, B]


async def test_unknown_digest_is_sought_while_it_is_waited_for() -> None:
    peers = Peers()
    published = PublishedModules(Fetcher(), peers=peers)  # type: ignore[arg-type]
    waiting = asyncio.create_task(published.wait_known(A))
    async with asyncio.timeout(30):
        while not peers.requests:
            await asyncio.sleep(0)
        published.set("x/1", (origin(),))
        await waiting


async def test_waiter_that_leaves_takes_the_news_from_no_other() -> None:
    published = modules(Fetcher())
    leaving, staying = (asyncio.create_task(published.wait_known(A)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert not staying.done()
    published.set("x/1", (origin(),))
    async with asyncio.timeout(60):
        await staying


async def test_waiter_that_leaves_in_the_moment_of_the_news_harms_no_other() -> None:
    published = modules(Fetcher())
    leaving, staying = (asyncio.create_task(published.wait_known(A)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    published.set("x/1", (origin(),))
    async with asyncio.timeout(60):
        await staying
    assert leaving.cancelled()


@pytest.mark.looptime
async def test_origin_that_fails_late_is_waited_for_when_no_other_is_left() -> None:
    class Late(Fetcher):
        async def fetch_at_source(self, request: FetchRequest) -> Record:
            await asyncio.sleep(3 * module.NEXT_ORIGIN_AFTER if request.namespace == "one" else 0)
            return await super().fetch_at_source(request)

    fetcher = Late(one=SourceNotFound("gone"), two=SourceUnavailable("down"))
    published = modules(fetcher)
    published.set("x/1", (origin("one"),))
    published.set("x/2", (origin("two"),))
    with pytest.raises(SourceNotFound, match="gone"):
        await published.fill(A)
    assert [request.namespace for request in fetcher.requests] == ["two", "one"]
