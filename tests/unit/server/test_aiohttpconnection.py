"""The blob port under failures of aiohttp or the kernel that real clients do not cause."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autowasm.limits import ServeLimits
from autowasm.server.aiohttpconnection import Connection
from autowasm.server.app import Connections


def failed(error: Exception, *, sent: int) -> Any:
    """The answer to a request that failed after so many bytes of another answer."""
    request = SimpleNamespace(path="/wasm/x", writer=SimpleNamespace(output_size=sent))
    return Connection.handle_error(cast(Any, None), cast(Any, request), 500, error)


def test_no_second_answer_follows_one_that_has_begun() -> None:
    assert failed(ZeroDivisionError(), sent=0).status == 500
    with pytest.raises(ConnectionError, match="cannot be completed"):
        failed(ZeroDivisionError(), sent=1)


def test_a_lost_connection_gets_no_answer() -> None:
    with pytest.raises(ConnectionResetError):
        failed(ConnectionResetError(), sent=0)


async def test_a_client_that_left_before_the_hand_over_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def connect(*_: object) -> None:
        raise OSError("bad file descriptor")

    loop, causes = asyncio.get_running_loop(), list[str]()
    monkeypatch.setattr(loop, "connect_accepted_socket", connect)
    owner = SimpleNamespace(_loop=loop, _limits=ServeLimits(), _kwargs={})
    quick = SimpleNamespace(socket=None, cut=causes.append)
    await Connections._go_on(cast(Any, owner), cast(Any, quick), b"", None)
    assert causes == ["client"]
