"""Objects that cannot be decoded, an AutoWasm or a foreign EnvoyFilter, affect no other object on a real API server."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import wat
from tests.parts.installation import Document, Installation, autowasms, envoyfilters

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

DEPTH = 3_000
"""Levels; the API server accepts 10 000, and Python's decoders at most 1000."""


async def _create_deep(installation: Installation, path: str, document: dict[str, Any]) -> None:
    """POST `document` with deeply nested data instead of `"HERE"`. The text is built by hand: Python's encoder refuses such depth."""
    text = json.dumps(document).replace('"HERE"', '{"a":' * DEPTH + "1" + "}" * DEPTH)
    answer = await installation.cluster.client.call("POST", path, body=text.encode())
    assert answer.status == 201, answer.body[:300]


@pytest_asyncio.fixture(loop_scope="session")
async def namespace_of_deep_objects(
    installation: Installation, namespace: str
) -> AsyncIterator[str]:
    """Its objects are deleted without being read; following tests could not read them."""
    yield namespace
    for collection in (autowasms(namespace), envoyfilters(namespace)):
        await installation.cluster.client.delete(collection)


async def test_deeply_nested_objects_do_not_block_other_objects(
    installation: Installation, namespace_of_deep_objects: str
) -> None:
    namespace = namespace_of_deep_objects
    deep = installation.autowasm("r.example/a:v1", namespace=namespace, name="deep")
    deep["spec"]["filter"]["pluginConfig"] = "HERE"
    await _create_deep(installation, autowasms(namespace), deep)
    stranger = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "stranger", "namespace": namespace},
        "spec": {"configPatches": [{"applyTo": "CLUSTER", "patch": {"value": {"a": "HERE"}}}]},
    }
    await _create_deep(installation, envoyfilters(namespace), stranger)

    async def refused() -> Document | None:
        # As text: the test does not decode it, either.
        answer = await installation.cluster.client.call("GET", autowasms(namespace, "deep"))
        return {"refused": True} if b"nested deeper" in answer.body else None

    # Seen by the watch, and then, after a restart, by the list.
    await installation.wait_until(refused)
    await installation.wasmer.process.stop()
    await installation.wasmer.start()
    image = await installation.push("nested-good", wat.header_filter("nested"))
    await installation.apply(installation.autowasm(image, namespace=namespace, name="good"))
    await installation.wait_phase("Synced", name="good", namespace=namespace)
