import asyncio

import pytest

from autowasm.artifacts.peers import ALONE, hedged
from autowasm.errors import SourceUnavailable

pytestmark = pytest.mark.looptime


async def copy(after: float, *, succeeds: bool) -> bool:
    await asyncio.sleep(after)
    return succeeds


class Source:
    """Returns "fetched" or raises `error`, `after` seconds after its start."""

    def __init__(self, after: float = 0.0, *, error: Exception | None = None) -> None:
        self.after = after
        self.error = error
        self.started_at: list[float] = []
        self.cancelled = False

    async def __call__(self) -> str:
        self.started_at.append(now())
        try:
            await asyncio.sleep(self.after)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return "fetched"


DOWN = SourceUnavailable("registry down")


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


async def test_source_gets_no_request_if_a_peer_copy_arrives_soon() -> None:
    source = Source()
    assert await hedged(copy(ALONE / 2, succeeds=True), source) is None
    assert source.started_at == []


async def test_source_is_tried_as_soon_as_the_copy_fails() -> None:
    source = Source()
    begun = now()
    assert await hedged(copy(0.1, succeeds=False), source) == "fetched"
    assert source.started_at == [begun + 0.1]


async def test_slow_peer_copy_starts_a_parallel_fetch_from_the_source() -> None:
    source = Source(0.5)
    begun = now()
    assert await hedged(copy(3600, succeeds=True), source) == "fetched"
    assert now() == begun + ALONE + 0.5


@pytest.mark.parametrize("source", [Source(3600), Source(error=DOWN)])
async def test_copy_that_comes_late_still_helps(source: Source) -> None:
    begun = now()
    assert await hedged(copy(ALONE + 1, succeeds=True), source) is None
    assert now() == begun + ALONE + 1
    assert source.cancelled == (source.error is None)


@pytest.mark.parametrize("after", [0.0, ALONE + 1])
async def test_error_of_the_source_is_raised(after: float) -> None:
    with pytest.raises(SourceUnavailable, match="registry down"):
        await hedged(copy(after, succeeds=False), Source(error=DOWN))


async def test_slow_source_is_waited_for_once_the_copy_has_failed() -> None:
    assert await hedged(copy(ALONE + 1, succeeds=False), Source(30.0)) == "fetched"


async def test_cancelled_caller_leaves_no_task_running() -> None:
    source = Source(3600)
    waiting = asyncio.create_task(hedged(copy(3600, succeeds=True), source))
    await asyncio.sleep(ALONE + 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert source.cancelled
    assert asyncio.all_tasks() == {asyncio.current_task()}
