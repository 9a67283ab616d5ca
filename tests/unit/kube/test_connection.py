"""A connection that was replaced is closed with its last call, however that ended."""

import aiohttp
import pytest

from autowasm.kube.client import ApiConnection, Call
from autowasm.performance import libraryimport


async def test_retired_connection_is_closed_though_a_call_had_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def gone(_: object) -> None:
        raise OSError("no such token")

    configuration = libraryimport.load().new_configuration(host="http://127.0.0.1:1")
    configuration.refresh_api_key_hook = gone
    connection = ApiConnection(configuration, fingerprint="", user_agent="test/1")
    closed = []

    async def close() -> None:
        closed.append(True)
        await ApiConnection.close(connection)

    monkeypatch.setattr(connection, "close", close)
    with pytest.raises(OSError, match="no such token"):
        async with connection.send(Call("GET", "/x", {}), aiohttp.ClientTimeout(1)):
            pass
    await connection.retire()
    assert closed
