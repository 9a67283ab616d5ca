"""Hundreds of objects change at once: running sidecars are not affected, and all objects are published."""

import hashlib
from collections.abc import Iterable

import pytest

from autowasm.api import envoyfilter as envoyfilters_of
from tests.chaos.checks import unharmed
from tests.chaos.newcomer import NAME, add_newcomers_service, newcomer
from tests.parts.fleet import Fleet
from tests.parts.installation import Document, autowasms, envoyfilters

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.chaos,
]

COUNT = 300
"""Many more than queue workers and concurrent fetches."""
NAMESPACE = "many"


def _documents(world: Fleet, image: str) -> Iterable[Document]:
    for number in range(COUNT):
        document = world.installation.autowasm(image, name=f"f{number}", namespace=NAMESPACE)
        document["spec"]["selector"]["matchLabels"] = {"app": f"nobody-{number}"}
        yield document


async def _published(world: Fleet, module: bytes) -> int:
    """The number of them that have this module now."""
    digest = hashlib.sha256(module).hexdigest()
    found = (await world.cluster.request("GET", envoyfilters(NAMESPACE)))["items"]
    records = [envoyfilters_of.record_of(one) for one in found]
    return sum(record is not None and record.sha256 == digest for record in records)


async def _all_publish(world: Fleet, module: bytes) -> None:
    async def published() -> Document | None:
        return {} if await _published(world, module) == COUNT else None

    await world.installation.wait_until(published, timeout=150)


async def test_hundreds_of_autowasms_change_at_once(world: Fleet) -> None:
    await add_newcomers_service(world)
    await world.publish(NAME)
    await world.installation.add_namespace(NAMESPACE)
    first, second = world.module("many"), world.module("many")
    image = await world.push(first)
    path = autowasms(NAMESPACE)
    await world.cluster.each(("POST", path, one) for one in _documents(world, image))
    await _all_publish(world, first)
    image = await world.push(second)
    async with unharmed(world):
        await world.cluster.each(
            ("PATCH", autowasms(NAMESPACE, one["metadata"]["name"]), {"spec": one["spec"]})
            for one in _documents(world, image)
        )
        assert await _published(world, second) < COUNT / 2, "the burst bit: most of them wait"
        async with newcomer(world, row="many"):
            await _all_publish(world, second)
        await world.settled()
