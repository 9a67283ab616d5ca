"""`refreshInterval` on a real API server and registry: a moved tag rolls out, and a registry that is away harms nothing."""

import asyncio
import hashlib
import re
import time

import pytest

from tests.parts import wat, wire
from tests.parts.installation import Document, Installation

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800)]

INTERVAL = 30.0
"""Seconds: the shortest that is taken."""
ROLLED_OUT_WITHIN = 120.0


def _sha256(module: bytes) -> str:
    return hashlib.sha256(module).hexdigest()


async def _wait_module(
    installation: Installation, namespace: str, module: bytes, *, timeout: float = 90.0
) -> Document:
    async def published() -> Document | None:
        document = await installation.get(namespace=namespace)
        status = document.get("status") or {}
        done = status.get("phase") == "Synced" and status["module"]["sha256"] == _sha256(module)
        return document if done else None

    return await installation.wait_until(published, timeout=timeout)


async def _requests(installation: Installation, repository: str, method: str) -> int:
    """How often the registry was asked about manifests of the repository, by its own log, and answered well."""
    log = await asyncio.to_thread(installation.registry.process.log.read_text)
    found = re.findall(rf'"{method} /v2/{repository}/manifests/\S+ HTTP/1\.1" 200', log)
    return len(found)


async def _samples(installation: Installation, family: str) -> dict[str, float]:
    """Label values to value."""
    answer = await wire.get(f"http://{installation.wasmer.admin}/metrics")
    text = answer.body.decode()
    return {
        labels: float(value)
        for labels, value in re.findall(rf"^{family}{{(.*)}} (\S+)$", text, flags=re.MULTILINE)
    }


async def _apply(installation: Installation, image: str, namespace: str, **fields: str) -> None:
    await installation.apply(installation.autowasm(image, namespace=namespace, **fields))


async def test_a_moved_tag_rolls_out_and_a_registry_that_is_down_harms_nothing(
    installation: Installation,
) -> None:
    namespace, repository = await installation.add_namespace("polled"), "polled/hello"
    one, two, three = (wat.header_filter(f"polled {number}") for number in (1, 2, 3))
    image = await installation.push("stable", one, repository=repository)
    await _apply(installation, image, namespace, refreshInterval=f"{INTERVAL:g}s")
    await _wait_module(installation, namespace, one)
    # Events are told a moment after the status is written.
    await _wait_event(installation, namespace, f"nothing → sha256:{_sha256(one)[:12]}")
    heads, gets = [await _requests(installation, repository, each) for each in ("HEAD", "GET")]
    begun, quiet = time.monotonic(), await installation.audit.position()

    # Three intervals in which nothing changes: a HEAD in each, no GET, no write.
    await asyncio.sleep(3 * INTERVAL)
    asked = await _requests(installation, repository, "HEAD") - heads
    assert 2 <= asked <= (time.monotonic() - begun) / (0.9 * INTERVAL) + 1
    assert await _requests(installation, repository, "GET") == gets
    writes = [each for each in await installation.writes(quiet) if each.namespace == namespace]
    assert writes == []

    # The tag moves.
    await installation.push("stable", two, repository=repository)
    document = await _wait_module(installation, namespace, two, timeout=ROLLED_OUT_WITHIN)
    assert document["status"]["history"][0]["sha256"] == _sha256(two)
    await _wait_event(
        installation, namespace, f"sha256:{_sha256(one)[:12]} → sha256:{_sha256(two)[:12]}"
    )

    # The registry goes; the polls fail, and nobody sees it but the metrics.
    version = document["metadata"]["resourceVersion"]
    failed = await _failed(installation)
    await installation.registry.stop()
    try:

        async def has_failed() -> Document | None:
            return {} if await _failed(installation) >= failed + 2 else None

        await installation.wait_until(has_failed, timeout=4 * ROLLED_OUT_WITHIN)
        down = await installation.get(namespace=namespace)
        assert down["metadata"]["resourceVersion"] == version
        assert down["status"]["phase"] == "Synced"
        blob = await wire.get(f"http://{installation.wasmer.host}/wasm/{_sha256(two)}")
        assert blob.status == 200
    finally:
        await installation.registry.start()
    await installation.push("stable", three, repository=repository)
    await _wait_module(installation, namespace, three, timeout=3 * ROLLED_OUT_WITHIN)
    hosts = await _samples(installation, "autowasm_source_requests_total")
    assert hosts[f'host="{installation.registry.host}"'] >= 5


async def test_a_bad_build_under_the_tag_is_told_and_taken_back(installation: Installation) -> None:
    namespace, repository = await installation.add_namespace("badbuild"), "badbuild/hello"
    good = wat.header_filter("good build")
    image = await installation.push("stable", good, repository=repository)
    await _apply(installation, image, namespace, refreshInterval=f"{INTERVAL:g}s")
    document = await _wait_module(installation, namespace, good)
    await installation.push("stable", b"\0asm\1\0\0\0", repository=repository, force=True)

    async def degraded() -> Document | None:
        found = await installation.get(namespace=namespace)
        return found if found["status"]["phase"] == "Degraded" else None

    found = await installation.wait_until(degraded, timeout=ROLLED_OUT_WITHIN)
    assert found["status"]["module"] == document["status"]["module"]
    assert "is still in place" in found["status"]["message"]
    await installation.push("stable", good, repository=repository)
    await _wait_module(installation, namespace, good, timeout=3 * ROLLED_OUT_WITHIN)


async def test_going_back_to_an_earlier_source_needs_no_registry(
    installation: Installation,
) -> None:
    namespace, repository = await installation.add_namespace("reverted"), "reverted/hello"
    old, new = wat.header_filter("reverted old"), wat.header_filter("reverted new")
    images = [
        await installation.push(tag, module, repository=repository)
        for tag, module in (("1.0", old), ("2.0", new))
    ]
    await _apply(installation, images[0], namespace)
    await _wait_module(installation, namespace, old)
    await _apply(installation, images[1], namespace)
    await _wait_module(installation, namespace, new)
    await installation.registry.stop()
    try:
        await _apply(installation, images[0], namespace)
        document = await _wait_module(installation, namespace, old)
    finally:
        await installation.registry.start()
    assert document["status"]["observedGeneration"] == document["metadata"]["generation"]
    assert [each["sha256"] for each in document["status"]["history"]] == [
        _sha256(old),
        _sha256(new),
    ]


async def _failed(installation: Installation) -> float:
    polls = await _samples(installation, "autowasm_polls_total")
    good = {f'outcome="{outcome}"' for outcome in ("unchanged", "changed", "outdated")}
    return sum(value for labels, value in polls.items() if labels not in good)


async def _wait_event(installation: Installation, namespace: str, text: str) -> None:
    async def told() -> Document | None:
        path = f"/api/v1/namespaces/{namespace}/events"
        events = (await installation.cluster.request("GET", path))["items"]
        return {} if any(text in event.get("message", "") for event in events) else None

    await installation.wait_until(told)
