"""Hundreds of objects change at once: running sidecars are not affected, and all objects are published."""

import hashlib
from collections.abc import Iterable, Sequence

import pytest

from autowasm.api import envoyfilter as envoyfilters_of
from tests.chaos.checks import unharmed
from tests.chaos.newcomer import NAME, add_newcomers_service, newcomer
from tests.parts.fleet import Fleet
from tests.parts.installation import Document, autowasms, envoyfilters
from tests.parts.wasmer import SLOW_LEASE

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.chaos,
]

COUNT = 300
"""Many more than queue workers and concurrent fetches."""
NAMESPACE = "many"


@pytest.fixture(scope="module")
def fleet_arguments() -> Sequence[str]:
    """On a busy machine, the API server may answer no request for the Lease within a second while the objects change."""
    return SLOW_LEASE


def _documents(fleet: Fleet, image: str) -> Iterable[Document]:
    for number in range(COUNT):
        document = fleet.installation.autowasm(image, name=f"f{number}", namespace=NAMESPACE)
        document["spec"]["selector"]["matchLabels"] = {"app": f"nobody-{number}"}
        yield document


async def _published(fleet: Fleet, module: bytes) -> int:
    """The number of them that have this module now."""
    digest = hashlib.sha256(module).hexdigest()
    found = (await fleet.cluster.request("GET", envoyfilters(NAMESPACE)))["items"]
    records = [envoyfilters_of.record_of(one) for one in found]
    return sum(record is not None and record.sha256 == digest for record in records)


async def _all_publish(fleet: Fleet, module: bytes) -> None:
    async def published() -> Document | None:
        return {} if await _published(fleet, module) == COUNT else None

    await fleet.installation.wait_until(published, timeout=150)


async def test_hundreds_of_autowasms_change_at_once(fleet: Fleet) -> None:
    await add_newcomers_service(fleet)
    await fleet.publish(NAME)
    await fleet.installation.add_namespace(NAMESPACE)
    first, second = fleet.module("many"), fleet.module("many")
    image = await fleet.push(first)
    path = autowasms(NAMESPACE)
    await fleet.cluster.each(("POST", path, one) for one in _documents(fleet, image))
    await _all_publish(fleet, first)
    image = await fleet.push(second)
    async with unharmed(fleet):
        await fleet.cluster.each(
            ("PATCH", autowasms(NAMESPACE, one["metadata"]["name"]), {"spec": one["spec"]})
            for one in _documents(fleet, image)
        )
        assert await _published(fleet, second) < COUNT / 2, "the burst bit: most of them wait"
        async with newcomer(fleet, row="many"):
            await _all_publish(fleet, second)
        await fleet.settled()
