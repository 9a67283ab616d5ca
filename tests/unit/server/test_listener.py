"""Accepting: no connection is lost at the close, and no busy loop without descriptors."""

import asyncio
import errno
import os
import resource
import socket

import structlog

from autowasm.server.app import Listener, listening_socket


def _listener(accepted: list[socket.socket], *, accepts: int = 64) -> tuple[Listener, int]:
    listening = listening_socket("127.0.0.1:0", backlog=64)
    listener = Listener(
        listening,
        loop=asyncio.get_running_loop(),
        accepts=accepts,
        on_accept=lambda one, address: accepted.append(one),
    )
    port: int = listening.getsockname()[1]
    return listener, port


def _connected(port: int, client: socket.socket | None = None) -> socket.socket:
    client = client or socket.socket()
    client.connect(("127.0.0.1", port))
    return client


async def _until(accepted: list[socket.socket], count: int) -> None:
    async with asyncio.timeout(20):
        while len(accepted) < count:
            await asyncio.sleep(0.01)


async def test_hands_on_all_in_several_turns() -> None:
    accepted: list[socket.socket] = []
    listener, port = _listener(accepted, accepts=2)
    clients = [_connected(port) for _ in range(7)]
    await _until(accepted, 7)
    listener.close()
    assert accepted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for one in [*accepted, *clients]:
        assert not one.getblocking() or one in clients
        one.close()


async def test_close_accepts_the_connections_in_the_backlog() -> None:
    accepted: list[socket.socket] = []
    listener, port = _listener(accepted)
    clients = [_connected(port) for _ in range(3)]
    listener.close()
    listener.close()
    assert len(accepted) == 3
    for one in [*accepted, *clients]:
        one.close()


async def test_a_close_while_it_waits_for_descriptors_is_a_close() -> None:
    accepted: list[socket.socket] = []
    listener, port = _listener(accepted)
    client = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with structlog.testing.capture_logs() as events:
        lowest_free = os.dup(client.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            _connected(port, client)
            async with asyncio.timeout(20):
                while not events:
                    await asyncio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        listener.close()
    assert len(accepted) == 1, "the connection that waited is handed on"
    paused = listener._paused
    assert paused is not None
    assert paused.cancelled(), "it does not begin to listen again"
    accepted[0].close()
    client.close()


async def test_waits_for_descriptors_and_says_so() -> None:
    accepted: list[socket.socket] = []
    listener, port = _listener(accepted)
    client = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with structlog.testing.capture_logs() as events:
        lowest_free = os.dup(client.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            _connected(port, client)
            async with asyncio.timeout(20):
                while not events:
                    await asyncio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not accepted
        await _until(accepted, 1)
    assert [event["event"] for event in events] == ["accepting connections is paused"]
    listener.close()
    accepted[0].close()
    client.close()


class FailingOnce(socket.socket):
    """Its first connection comes over a network that goes down meanwhile."""

    failures = 1

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ENETDOWN, "Network is down")
        return super().accept()


async def test_goes_on_after_an_error_of_one_connection() -> None:
    accepted: list[socket.socket] = []
    listening = FailingOnce(fileno=listening_socket("127.0.0.1:0", backlog=64).detach())
    listening.setblocking(False)
    listener = Listener(
        listening,
        loop=asyncio.get_running_loop(),
        accepts=64,
        on_accept=lambda one, address: accepted.append(one),
    )
    with structlog.testing.capture_logs() as events:
        client = _connected(listening.getsockname()[1])
        await _until(accepted, 1)
    assert [event["event"] for event in events] == ["connection not accepted"]
    assert "Network is down" in events[0]["error"]
    listener.close()
    accepted[0].close()
    client.close()
