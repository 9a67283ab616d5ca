import asyncio

from autowasm.server.blobs import SendScheduler


class Iterations:
    """Counts the iterations of the loop."""

    def __init__(self) -> None:
        self.number = 0
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self.number += 1
        self.handle = self._loop.call_soon(self._next)


async def test_few_go_on_in_one_turn_and_in_order() -> None:
    pacing, iterations = SendScheduler(copies=3), Iterations()
    went: list[tuple[int, int]] = []

    async def send(number: int) -> None:
        await pacing.wait()
        went.append((number, iterations.number))

    await asyncio.gather(*(send(number) for number in range(10)))
    iterations.handle.cancel()
    assert [number for number, _ in went] == list(range(10))
    numbers = [number for _, number in went]
    assert max(numbers.count(number) for number in numbers) == 3
    assert numbers[-1] - numbers[0] == 3, "no iteration with room is left empty"


async def test_cancelled_takes_no_place() -> None:
    pacing = SendScheduler(copies=1)
    cancelled = asyncio.ensure_future(pacing.wait())
    waiting = asyncio.ensure_future(pacing.wait())
    await asyncio.sleep(0)
    cancelled.cancel()
    async with asyncio.timeout(30):
        await waiting
    assert cancelled.cancelled()


async def test_works_again_after_it_was_idle() -> None:
    pacing = SendScheduler(copies=2)
    for _ in range(3):
        async with asyncio.timeout(30):
            await asyncio.gather(*(pacing.wait() for _ in range(5)))
