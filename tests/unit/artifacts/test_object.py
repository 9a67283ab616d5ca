"""HttpObjectSource: the key under which the failures of an object count."""

from collections.abc import AsyncIterator

import pytest

from autowasm.api.v1alpha1 import ObjectSource, Source
from autowasm.artifacts.object import HttpObjectSource
from autowasm.artifacts.source import SourceKey
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.net.session import ObjectSession
from autowasm.settings import Outgoing


@pytest.fixture
async def source() -> AsyncIterator[HttpObjectSource]:
    limits = Limits()
    with Pools() as pools:
        session = ObjectSession(outgoing=Outgoing(), limits=limits, pools=pools, policy=None)
        async with session:
            yield HttpObjectSource(session, limits=limits, pools=pools)


def key(source: HttpObjectSource, url: str) -> SourceKey:
    return source.key(Source(object=ObjectSource(url=url)), None)


@pytest.mark.parametrize(
    "other",
    [
        "https://storage.example/team-b/filter.wasm",
        "https://storage.example/team-a/filter.wasm?X-Signature=abc",
        "https://elsewhere.example/team-a/filter.wasm",
    ],
)
async def test_failures_of_one_object_are_not_those_of_another(
    source: HttpObjectSource, other: str
) -> None:
    assert key(source, other) != key(source, "https://storage.example/team-a/filter.wasm")


async def test_an_object_shares_its_failures_with_itself(source: HttpObjectSource) -> None:
    url = "https://storage.example/team-a/filter.wasm?X-Signature=abc"
    assert key(source, url) == key(source, url.replace("storage", "STORAGE"))


async def test_a_signature_is_not_in_the_key(source: HttpObjectSource) -> None:
    found = key(source, "https://storage.example/team-a/filter.wasm?X-Signature=abc")
    assert "abc" not in (found.host, found.repository, found.credential)
    assert "X-Signature" not in str(found)
