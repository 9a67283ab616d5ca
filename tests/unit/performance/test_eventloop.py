import asyncio
import selectors
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


def test_a_turn_takes_a_few_sockets_and_none_starves() -> None:
    with ExitStack() as stack, TimedSelector(LoopLimits(ready=4)) as selector:
        for one in ready_sockets(stack, 10):
            selector.register(one, 1)
        rounds = [[key.fd for key, _ in selector.select(0)] for _ in range(5)]
        assert [len(one) for one in rounds] == [4] * 5
        order = [fd for one in rounds for fd in one]
        assert len(set(order[:10])) == 10
        assert order[10:] == order[:10], "those that stay ready take turns"


def test_socket_that_becomes_ready_waits_only_for_those_before_it() -> None:
    with ExitStack() as stack, TimedSelector(LoopLimits(ready=4)) as selector:
        sockets = ready_sockets(stack, 10)
        probe, prober = socket.socketpair()
        stack.enter_context(probe)
        stack.enter_context(prober)
        for one in (*sockets, probe):
            selector.register(one, selectors.EVENT_READ)
        handled: list[list[object]] = []
        for _ in range(3):
            handled.append([key.fileobj for key, _ in selector.select(0)])
            for key in handled[-1]:
                assert isinstance(key, socket.socket)
                key.recv(1)
            if len(handled) == 1:
                prober.send(b"x")
        assert [len(one) for one in handled] == [4, 4, 3]
        assert handled[2][-1] is probe


def test_tells_reading_from_writing() -> None:
    both = selectors.EVENT_READ | selectors.EVENT_WRITE
    with ExitStack() as stack, TimedSelector() as selector:
        one, two, three = ready_sockets(stack, 3)
        selector.register(one, selectors.EVENT_READ)
        selector.register(two, selectors.EVENT_WRITE)
        selector.register(three, both)
        events = {key.fileobj: events for key, events in selector.select(0)}
        assert events == {one: selectors.EVENT_READ, two: selectors.EVENT_WRITE, three: both}
        three.recv(1)
        one.recv(1)
        events = {key.fileobj: events for key, events in selector.select(0)}
        assert events == {two: selectors.EVENT_WRITE, three: selectors.EVENT_WRITE}


def test_closed_and_changed_meanwhile_are_seen_as_they_are_now() -> None:
    with ExitStack() as stack, TimedSelector(LoopLimits(ready=1)) as selector:
        sockets = ready_sockets(stack, 4)
        for one in sockets:
            selector.register(one, 1)
        first = selector.select(0)[0][0].fileobj
        rest = [one for one in sockets if one is not first]
        selector.unregister(rest[0])
        selector.modify(rest[1], 1, data="another")
        seen = {key.fileobj: key.data for _ in range(3) for key, _ in selector.select(0)}
        assert seen == {rest[1]: "another", rest[2]: None, first: None}


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
