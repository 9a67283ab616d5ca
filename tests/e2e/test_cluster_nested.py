"""Objects that nobody can decode: an author's own, or a stranger's EnvoyFilter, harm no other on a real API server."""

import json
from typing import Any

import pytest

from tests.parts import wat, wire
from tests.parts.installation import Document, Installation, autowasms, envoyfilters
from tests.parts.kubernetes import ADMIN

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]

DEPTH = 3_000
"""Levels; the API server takes 10 000, and Python's decoders end at 1000."""


async def _create_deep(installation: Installation, path: str, document: dict[str, Any]) -> None:
    """POST `document` with its `"HERE"` made deep. By hand: Python encodes no such thing either."""
    text = json.dumps(document).replace('"HERE"', '{"a":' * DEPTH + "1" + "}" * DEPTH)
    cluster = installation.cluster
    answer = await wire.request(
        "POST",
        f"{cluster.url}{path}",
        headers=cluster._headers(ADMIN),
        body=text.encode(),
        tls=cluster.context,
    )
    assert answer.status == 201, answer.body[:300]


async def test_objects_nested_too_deeply_stop_nobody(
    installation: Installation, namespace: str
) -> None:
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
        # As text: nothing here decodes it, either.
        answer = await installation.cluster._call(
            "GET", autowasms(namespace, "deep"), body=None, user=ADMIN, timeout=30
        )
        return {"refused": True} if b"nested deeper" in answer.body else None

    # Seen by the watch, and then, after a restart, by the list.
    await installation.wait_until(refused)
    await installation.wasmer.process.stop()
    await installation.wasmer.start()
    image = await installation.push("nested-good", wat.header_filter("nested"))
    await installation.apply(installation.autowasm(image, namespace=namespace, name="good"))
    await installation.wait_phase("Synced", name="good", namespace=namespace)
