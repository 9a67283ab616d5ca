"""Objects of etcd's largest size, with any content, are read without holding the loop for 20 ms."""

import json
from collections.abc import Callable, Iterator

import pytest

from autowasm.api import validation
from autowasm.errors import SpecError
from autowasm.kube.codec import DocumentCodec, WatchEvent, decode_document
from autowasm.performance import eventloop
from tests.fakes.autowasms import document
from tests.hostile.looptime import longest_iteration

MOST = 0.020
SHARE = 10
"""On a slow machine an iteration may be longer, but always less than this share of the time to decode the worst object at once."""
SIZE = 1_500_000
"""etcd's default limit is 1.5 MiB."""


@pytest.fixture(autouse=True, scope="module")
def as_in_the_process() -> Iterator[None]:
    """The collector as `runtime.run` sets it for the whole process. What it freezes stays so, as in `test_stall.py`."""
    import gc  # noqa: PLC0415

    threshold = gc.get_threshold()
    eventloop.tune_gc()
    yield
    gc.set_threshold(*threshold)


def many(text: str) -> str:
    return ",".join([text] * (SIZE // (len(text) + 1)))


def names(value: str) -> str:
    return ",".join(f'"{number:x}":{value}' for number in range(SIZE // (len(value) + 8)))


def listed(*parts: str) -> str:
    return '{"a":[' + ",".join(parts) + "]}"


DEEP = "[" * 1_500 + "]" * 1_500
CONFIGS: dict[str, Callable[[], str]] = {
    "empty lists": lambda: listed(many("[]")),
    "empty objects": lambda: listed(many("{}")),
    "small objects": lambda: listed(many('{"":0}')),
    "numbers": lambda: listed(many("0")),
    "names": lambda: "{" + names("1") + "}",
    "lists in lists": lambda: listed(many("[" * 190 + "]" * 190)),
    "strings": lambda: listed(many('""')),
    "deep": lambda: listed(many("[" * 9_000 + "]" * 9_000)),
    "deep, then lists": lambda: listed(DEEP, many("[]")),
    "deep, then names": lambda: '{"b":' + DEEP + "," + names("1") + "}",
    "deep, then escapes": lambda: listed(DEEP, '"' + r"\"" * (SIZE // 2) + '"'),
}


def written(config: str) -> bytes:
    """An AutoWasm with this pluginConfig, as the API server sends it."""
    text = json.dumps(document(pluginConfig="HERE", metadata={"uid": "u"}))
    return text.replace('"HERE"', config).encode()


def event(text: bytes) -> bytes:
    return b'{"type":"ADDED","object":' + text + b"}"


async def decoding_at_once(*, scaled: bool = True) -> float:
    """Seconds of one iteration."""
    line = event(written(CONFIGS["lists in lists"]()))

    async def at_once() -> None:
        DocumentCodec().decode_event(line)

    return await longest_iteration(at_once, scaled=scaled)


async def is_short(turn: float) -> bool:
    return turn < MOST or turn < await decoding_at_once() / SHARE


async def test_a_busy_turn_is_seen() -> None:
    """The measurement works: decoding such an object at once is a long iteration."""
    assert not await is_short(await decoding_at_once(scaled=False))


@pytest.mark.parametrize("kind", CONFIGS)
async def test_an_event_of_the_largest_size_holds_the_loop_for_no_turn(kind: str) -> None:
    line = event(written(CONFIGS[kind]()))
    assert len(line) > SIZE - 20_000

    async def follow() -> None:
        read = await DocumentCodec().event(line)
        assert isinstance(read, WatchEvent)
        assert read.key.name == "test"
        with pytest.raises(SpecError):
            validation.parse(read.object)

    assert await is_short(await longest_iteration(follow, below=MOST))


@pytest.mark.parametrize("kind", ["lists in lists", "names", "deep"])
async def test_an_answer_of_the_largest_size_holds_the_loop_for_no_turn(kind: str) -> None:
    body = written(CONFIGS[kind]())
    assert await is_short(await longest_iteration(lambda: decode_document(body), below=MOST))


async def test_a_page_of_objects_of_the_largest_size_holds_the_loop_for_no_turn() -> None:
    hostile = written(CONFIGS["lists in lists"]())
    body = b'{"metadata":{},"items":[' + b",".join([hostile, written("{}"), hostile]) + b"]}"

    async def read() -> None:
        page = await DocumentCodec().page(body)
        assert len(page.items) == 3
        validation.parse(page.items[1][1])

    assert await is_short(await longest_iteration(read, below=MOST))


async def test_hundreds_of_thousands_of_labels_are_left_out() -> None:
    text = json.dumps(document(metadata={"labels": "HERE", "uid": "u", "managedFields": "HERE"}))
    config = "{" + names('"v"')[: SIZE // 2].rpartition(",")[0] + "}"
    line = event(text.replace('"HERE"', config).encode())

    async def follow() -> None:
        read = await DocumentCodec().event(line)
        assert isinstance(read, WatchEvent)
        assert read.object["metadata"]["uid"] == "u"
        assert "labels" not in read.object["metadata"]
        validation.parse(read.object)  # the rest is as it was

    assert await is_short(await longest_iteration(follow, below=MOST))
