import asyncio
import socket
from contextlib import ExitStack

from autowasm.limits import LoopLimits
from autowasm.performance.eventloop import TimedLoop, TimedSelector


def ready_sockets(stack: ExitStack, count: int) -> list[socket.socket]:
    """Sockets with something to read."""
    found = []
    for _ in range(count):
        near, far = socket.socketpair()
        stack.enter_context(near)
        stack.enter_context(far)
        far.send(b"x")
        found.append(near)
    return found


def test_a_turn_takes_a_few_and_nobody_starves() -> None:
    with ExitStack() as stack, TimedSelector(LoopLimits(ready=4)) as selector:
        for one in ready_sockets(stack, 10):
            selector.register(one, 1)
        rounds = [[key.fd for key, _ in selector.select(0)] for _ in range(3)]
        assert [len(one) for one in rounds] == [4, 4, 2]
        assert len({fd for one in rounds for fd in one}) == 10


def test_closed_and_changed_meanwhile_are_left_out() -> None:
    with ExitStack() as stack, TimedSelector(LoopLimits(ready=1)) as selector:
        sockets = ready_sockets(stack, 4)
        for one in sockets:
            selector.register(one, 1)
        first = selector.select(0)[0][0].fileobj
        rest = [one for one in sockets if one is not first]
        selector.unregister(rest[0])
        selector.modify(rest[1], 1, data="another")
        assert [key.fileobj for key, _ in selector.select(0)] == [rest[2]]
        seen = {key.fileobj for _ in range(3) for key, _ in selector.select(0)}
        assert rest[1] in seen, "the kernel tells of it again"
        assert rest[0] not in seen


def test_waits_when_nothing_is_left() -> None:
    with TimedSelector() as selector:
        assert selector.select(0.01) == []


def test_loop_serves_more_connections_than_a_turn_takes() -> None:
    loop = TimedLoop()
    loop.timing.limits = LoopLimits(ready=2)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def main() -> list[bytes]:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, asyncio.timeout(60):
            port = server.sockets[0].getsockname()[1]
            return await asyncio.gather(*(ask(port) for _ in range(50)))

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(main()) == [b"x"] * 50
