"""An ObjectSession on a scripted server."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from autowasm.errors import (
    AutoWasmError,
)
from autowasm.limits import MIB, Limits
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.net.session import ObjectSession
from autowasm.settings import Outgoing

LIMITS = Limits(
    connect_timeout=60,
    answer_timeout=60,
    fetch_timeout=600,
    minimum_rate=1000,
    minimum_rate_after=60,
    layer_bytes=MIB,
)


LOOPBACK = AddressPolicy(allow=["127.0.0.0/8", "::1"])


@contextlib.asynccontextmanager
async def opened(
    *,
    limits: Limits = LIMITS,
    policy: AddressPolicy | None = LOOPBACK,
    ca_file: Path | None = None,
    on_request: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[ObjectSession]:
    with Pools() as pools:
        outgoing = Outgoing(ca_file=ca_file)
        async with ObjectSession(
            outgoing=outgoing, limits=limits, pools=pools, policy=policy, on_request=on_request
        ) as session:
            yield session


async def read(session: ObjectSession, url: str) -> bytes:
    async with session.stream_get(url) as stream:
        return b"".join([chunk async for chunk in stream])


async def failure(session: ObjectSession, url: str) -> AutoWasmError:
    with pytest.raises(AutoWasmError) as caught:
        await read(session, url)
    assert "secret" not in str(caught.value)
    return caught.value
