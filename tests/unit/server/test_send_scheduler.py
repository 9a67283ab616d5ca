import asyncio

from autowasm.server.response import SendScheduler


class Turns:
    """Counts the loop's turns as they go by."""

    def __init__(self) -> None:
        self.number = 0
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self.number += 1
        self.handle = self._loop.call_soon(self._next)


async def test_few_go_on_in_one_turn_and_in_order() -> None:
    pacing, turns = SendScheduler(copies=3), Turns()
    went: list[tuple[int, int]] = []

    async def send(number: int) -> None:
        await pacing.turn()
        went.append((number, turns.number))

    await asyncio.gather(*(send(number) for number in range(10)))
    turns.handle.cancel()
    assert [number for number, _ in went] == list(range(10))
    in_turn = [turn for _, turn in went]
    assert max(in_turn.count(turn) for turn in in_turn) == 3
    assert in_turn[-1] - in_turn[0] == 3, "no turn with room is left empty"


async def test_cancelled_takes_no_place() -> None:
    pacing = SendScheduler(copies=1)
    cancelled = asyncio.ensure_future(pacing.turn())
    waiting = asyncio.ensure_future(pacing.turn())
    await asyncio.sleep(0)
    cancelled.cancel()
    async with asyncio.timeout(30):
        await waiting
    assert cancelled.cancelled()


async def test_works_again_after_it_was_idle() -> None:
    pacing = SendScheduler(copies=2)
    for _ in range(3):
        async with asyncio.timeout(30):
            await asyncio.gather(*(pacing.turn() for _ in range(5)))
