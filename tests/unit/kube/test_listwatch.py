"""A reflector on broken HTTP streams: the bytes on the wire after errors."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from autowasm.kube import reflector
from autowasm.kube.codec import DocumentCodec
from autowasm.kube.informer import Informer
from autowasm.kube.listwatch import ListWatch
from autowasm.kube.resources import ResourceType
from autowasm.limits import KubeLimits
from tests.unit.kube.wire import Answer, Wire, WireRequest, client_of, failure, json_answer

THINGS = ResourceType("example.com", "v1", "things", "Thing")
LIMITS = KubeLimits(line_bytes=100_000)


def thing(name: str, rv: int, **more: str) -> dict[str, object]:
    metadata = {"namespace": "ns", "name": name, "resourceVersion": str(rv)}
    return {"metadata": metadata, "spec": more}


def line(kind: str, item: object) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def listed(*things: object, rv: int, token: str = "") -> Answer:
    metadata = {"resourceVersion": str(rv), "continue": token}
    return json_answer({"metadata": metadata, "items": list(things)})


FOREVER = Answer(parts=(60.0,))


class Server(Wire):
    """Lists and watches have answers of their own; after the last watch answer, silence."""

    def __init__(self, *, lists: list[Answer], watches: list[Answer]) -> None:
        super().__init__()
        self._lists, self._watches = lists, watches
        self.reply = self._reply

    def _reply(self, request: WireRequest) -> Answer:
        if "watch" in parse_qs(request.query):
            return self._watches.pop(0) if self._watches else FOREVER
        return self._lists.pop(0)

    @property
    def watched_from(self) -> list[str]:
        queries = [parse_qs(request.query) for request in self.requests]
        return [query["resourceVersion"][0] for query in queries if "watch" in query]

    @property
    def lists_requested(self) -> int:
        return sum("watch" not in parse_qs(request.query) for request in self.requests)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure: how long they are is tested in virtual time (`test_reflector.py`)."""
    monkeypatch.setattr(reflector, "BACKOFF", replace(reflector.BACKOFF, base=0.05))


@asynccontextmanager
async def informed(
    server: Wire, directory: Path, *, limits: KubeLimits = LIMITS, streaming: bool = False
) -> AsyncIterator[Informer[dict[str, object]]]:
    async with client_of(server, directory, limits=limits) as client:
        informer: Informer[dict[str, object]] = Informer(
            "things",
            list_watch=ListWatch(client, THINGS, DocumentCodec(), label_selector="a=b"),
            limits=limits,
            streaming=streaming,
        )
        task = asyncio.create_task(informer.run())
        try:
            yield informer
            assert not task.done(), task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_list_and_watch_requests_have_the_expected_parameters(tmp_path: Path) -> None:
    server = Server(
        lists=[listed(thing("a", 1), rv=5, token="t/1="), listed(thing("b", 2), rv=5)], watches=[]
    )
    async with informed(server, tmp_path):
        await until(lambda: len(server.requests) == 3)
    first, second, watch = (parse_qs(request.query) for request in server.requests)
    assert first == {"labelSelector": ["a=b"], "limit": ["500"]}
    assert second == {"labelSelector": ["a=b"], "limit": ["500"], "continue": ["t/1="]}
    assert 300 <= int(watch.pop("timeoutSeconds")[0]) <= 600
    assert watch == {
        "labelSelector": ["a=b"],
        "watch": ["true"],
        "allowWatchBookmarks": ["true"],
        "resourceVersion": ["5"],
    }


async def test_a_streaming_list_is_asked_for_as_the_api_wants_it(tmp_path: Path) -> None:
    end = {
        "metadata": {"resourceVersion": "5", "annotations": {"k8s.io/initial-events-end": "true"}}
    }
    server = Wire(Answer(parts=(line("ADDED", thing("a", 1)), line("BOOKMARK", end), 60.0)))
    async with informed(server, tmp_path, streaming=True) as informer:
        await asyncio.wait_for(informer.wait_synced(), 10)
        assert len(informer.store) == 1
    query = parse_qs(server.requests[0].query)
    assert query["sendInitialEvents"] == ["true"]
    assert query["resourceVersionMatch"] == ["NotOlderThan"]
    assert "resourceVersion" not in query


@pytest.mark.usefixtures("short_pauses")
async def test_half_a_line_is_discarded_and_the_watch_resumes_before_it(tmp_path: Path) -> None:
    whole, half = line("ADDED", thing("b", 6)), line("ADDED", thing("c", 7))
    server = Server(
        lists=[listed(thing("a", 1), rv=5)],
        watches=[Answer(parts=(whole + half[:40],), cut=True), Answer(parts=(half, 60.0))],
    )
    async with informed(server, tmp_path) as informer:
        await until(lambda: len(informer.store) == 3)
    assert server.watched_from == ["5", "6"]
    assert server.lists_requested == 1


@pytest.mark.usefixtures("short_pauses")
async def test_half_a_line_before_an_orderly_end_is_discarded_too(tmp_path: Path) -> None:
    whole, half = line("ADDED", thing("b", 6)), line("ADDED", thing("c", 7))
    server = Server(
        lists=[listed(rv=5)],
        watches=[Answer(parts=(whole, half[:40])), Answer(parts=(half, 60.0))],
    )
    async with informed(server, tmp_path) as informer:
        await until(lambda: len(informer.store) == 2)
    assert server.watched_from == ["5", "6"]


async def test_an_event_in_many_pieces_is_one_event(tmp_path: Path) -> None:
    text = line("ADDED", thing("b", 6, text="x" * 50_000))
    pieces = tuple(text[start : start + 997] for start in range(0, len(text), 997))
    server = Server(lists=[listed(rv=5)], watches=[Answer(parts=(*pieces, 60.0))])
    async with informed(server, tmp_path) as informer:
        await until(lambda: len(informer.store) == 1)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(
    "answer",
    [
        Answer(401, {}, (b"Unauthorized",)),
        failure(429, "TooManyRequests", Retry_After="1"),
        failure(500, "InternalError"),
        Answer(503, {}, (b"<html>",)),
    ],
    ids=["401", "429", "500", "503"],
)
async def test_a_refused_watch_is_never_taken_for_events(answer: Answer, tmp_path: Path) -> None:
    server = Server(
        lists=[listed(thing("a", 1), rv=5)],
        watches=[answer, Answer(parts=(line("ADDED", thing("b", 6)), 60.0))],
    )
    async with informed(server, tmp_path) as informer:
        await until(lambda: len(informer.store) == 2)
    assert server.watched_from == ["5", "5"]
    assert server.lists_requested == 1


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(
    "answer",
    [
        failure(410, "Expired"),
        Answer(parts=(line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"}),)),
        failure(403, "Forbidden"),
        Answer(parts=(b"<html>this is not the API</html>\n",)),
        Answer(parts=(b"x" * 100_001,)),
    ],
    ids=["410", "410 in the stream", "403", "not Kubernetes", "endless line"],
)
async def test_a_watch_that_cannot_go_on_is_followed_by_a_list(
    answer: Answer, tmp_path: Path
) -> None:
    server = Server(
        lists=[listed(thing("a", 1), rv=5), listed(thing("b", 6), rv=9)], watches=[answer]
    )
    async with informed(server, tmp_path) as informer:
        await until(lambda: informer.reflector.position == "9")
        assert [key.name for key in informer.store] == ["b"]
    assert server.watched_from[0] == "5"


async def test_empty_watches_do_not_become_a_storm(tmp_path: Path) -> None:
    empty = Answer(parts=())
    server = Server(lists=[listed(rv=5)], watches=[empty] * 100)
    async with informed(server, tmp_path):
        await until(lambda: len(server.requests) == 2)
        await asyncio.sleep(0.5)
        assert len(server.requests) == 2


@pytest.mark.usefixtures("short_pauses")
async def test_a_frozen_watch_is_cut(tmp_path: Path) -> None:
    limits = KubeLimits(bookmark_silence=0.2)
    mark = line("BOOKMARK", {"metadata": {"resourceVersion": "8"}})
    server = Server(lists=[listed(rv=5)], watches=[Answer(parts=(mark, 60.0))])
    async with informed(server, tmp_path, limits=limits) as informer:
        await until(lambda: len(server.watched_from) == 2)
        assert informer.reflector.position == "8"
    assert server.watched_from == ["5", "8"]


async def test_a_page_too_long_is_asked_for_again_with_fewer_objects(tmp_path: Path) -> None:
    large = [thing(name, rv, text="x" * 1_000) for rv, name in enumerate("abcd", start=1)]
    server = Server(
        lists=[
            listed(*large, rv=5),
            listed(*large, rv=5),
            listed(large[0], rv=5, token="one"),
            listed(*large, rv=5),  # 7 more were requested
            listed(large[1], rv=5, token="two"),
            listed(large[2], rv=5),
        ],
        watches=[],
    )
    limits = KubeLimits(page_bytes=2_000, page_size=128)
    async with informed(server, tmp_path, limits=limits) as informer:
        await asyncio.wait_for(informer.wait_synced(), 30)
        assert [key.name for key in informer.store] == ["a", "b", "c"]
    queries = [parse_qs(request.query) for request in server.requests][:6]
    request = [(query["limit"][0], query.get("continue", [""])[0]) for query in queries]
    assert request == [
        ("128", ""),
        ("32", ""),
        ("8", ""),
        ("8", "one"),
        ("2", "one"),
        ("2", "two"),
    ]


async def test_one_object_may_be_as_long_as_any_answer(tmp_path: Path) -> None:
    answers = [listed(thing("a", 1, text="x" * 3_000), rv=5) for _ in range(2)]
    server = Server(lists=answers, watches=[])
    limits = KubeLimits(page_bytes=2_000, page_size=4)
    async with informed(server, tmp_path, limits=limits) as informer:
        await asyncio.wait_for(informer.wait_synced(), 30)
    assert server.lists_requested == 2
