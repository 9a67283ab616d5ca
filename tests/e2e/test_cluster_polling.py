"""`refreshInterval` on a real API server and registry: a moved tag rolls out, and an outage of the registry has no effect."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.clusterfixtures import PrivateInstallation
from tests.parts import wat, wire
from tests.parts.controlplane import ControlPlane
from tests.parts.faults.virtualtime import VirtualTime
from tests.parts.installation import Document, Installation, autowasms

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

INTERVAL = 30.0
"""Seconds: the shortest interval that is accepted. They pass at once (`virtualtime.py`)."""
ANSWERED = frozenset({"unchanged", "changed", "outdated"})
"""Outcomes of polls that have not failed."""


@dataclass(frozen=True)
class Polled:
    """The running parts, on a clock that the test moves. wasmer leads without a Lease, which would expire each time."""

    installation: Installation
    time: VirtualTime
    plane: ControlPlane

    async def pass_(self, seconds: float = 1.2 * INTERVAL) -> None:
        """Let time pass; by default enough for every poll to be due: an interval is longer by up to a tenth."""
        await self.time.pass_(seconds, [self.installation.wasmer])

    async def polls(self, *, failed: bool = False) -> float:
        """The number of polls that have ended; with `failed` only of those without an answer."""
        answer = await wire.get(f"http://{self.installation.wasmer.admin}/metrics")
        found = re.findall(
            r'^autowasm_polls_total{outcome="(.*)"} (\S+)$',
            answer.body.decode(),
            flags=re.MULTILINE,
        )
        return sum(float(value) for name, value in found if not (failed and name in ANSWERED))

    async def next_poll(self) -> None:
        """Let enough time pass for a poll to be due, and wait for its end."""
        before = await self.polls()
        await self.pass_()
        await self.ended(before + 1)

    async def ended(self, polls: float, *, failed: bool = False) -> None:
        """Wait until this many polls have ended (`failed`: without an answer)."""

        async def reached() -> Document | None:
            if await self.polls(failed=failed) >= polls:
                return {}
            await asyncio.sleep(0.1)  # an answer with all metrics takes wasmer 10 ms
            return None

        await self.installation.wait_until(reached)

    async def published(self, namespace: str, module: bytes) -> Document:
        """The AutoWasm, once it is Synced with this module."""

        def done(found: Document | None) -> bool:
            status = (found or {}).get("status") or {}
            return status.get("phase") == "Synced" and (
                status["module"]["sha256"] == _sha256(module)
            )

        return await self.installation.wait_object(autowasms(namespace, "test"), done)

    async def apply(self, image: str, namespace: str, **fields: str) -> None:
        """Create or change the AutoWasm."""
        await self.installation.apply(
            self.installation.autowasm(image, namespace=namespace, **fields)
        )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def polled(
    control_plane: ControlPlane,
    private_installation: PrivateInstallation,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Polled]:
    directory = tmp_path_factory.mktemp("polling")
    time = VirtualTime(directory / "time")
    async with private_installation(
        directory, arguments=["--no-leader-elect"], env=time.environment
    ) as installation:
        yield Polled(installation, time, control_plane)


@pytest_asyncio.fixture(loop_scope="session")
async def namespace(polled: Polled) -> AsyncIterator[str]:
    """With the pull secret. Its AutoWasm is deleted at the end: the metrics count the polls of all."""
    installation = polled.installation
    name = await polled.plane.add_namespace("polled")
    await installation.add_pull_secret(name)
    yield name
    await installation.cluster.request("DELETE", autowasms(name, "test"))

    async def is_gone() -> Document | None:
        return None if await installation.wasmer.metric("autowasm_autowasms") else {}

    await installation.wait_until(is_gone)


def _sha256(module: bytes) -> str:
    return hashlib.sha256(module).hexdigest()


async def _requests(installation: Installation, repository: str, method: str) -> int:
    """Number of successful requests for manifests of the repository, from the registry's own log."""
    log = await asyncio.to_thread(installation.registry.process.log.read_text)
    found = re.findall(rf'"{method} /v2/{repository}/manifests/\S+ HTTP/1\.1" 200', log)
    return len(found)


async def test_a_moved_tag_rolls_out_and_a_registry_that_is_down_harms_nothing(
    polled: Polled, namespace: str
) -> None:
    installation, repository = polled.installation, "polled/hello"
    one, two, three = (wat.header_filter(f"polled {number}") for number in (1, 2, 3))
    image = await installation.push("stable", one, repository=repository)
    await polled.apply(image, namespace, refreshInterval=f"{INTERVAL:g}s")
    await polled.published(namespace, one)
    # wasmer writes Events a moment after the status.
    event = await installation.wait_event(
        namespace=namespace, text=f"nothing → sha256:{_sha256(one)[:12]}"
    )
    heads, gets = [await _requests(installation, repository, each) for each in ("HEAD", "GET")]
    begun, quiet = polled.time.monotonic(), await installation.logged(event)

    # Three intervals in which nothing changes: a HEAD in each, no GET, no write.
    for _ in range(3):
        await polled.next_poll()
    asked = await _requests(installation, repository, "HEAD") - heads
    assert 3 <= asked <= (polled.time.monotonic() - begun) / (0.9 * INTERVAL) + 1
    assert await _requests(installation, repository, "GET") == gets
    writes = [each for each in await installation.writes(quiet) if each.namespace == namespace]
    assert writes == []

    # The tag moves.
    await installation.push("stable", two, repository=repository)
    await polled.pass_()
    document = await polled.published(namespace, two)
    assert document["status"]["history"][0]["sha256"] == _sha256(two)
    await installation.wait_event(
        namespace=namespace, text=f"sha256:{_sha256(one)[:12]} → sha256:{_sha256(two)[:12]}"
    )

    # The registry stops; the polls fail, which only the metrics show.
    version = document["metadata"]["resourceVersion"]
    failed = await polled.polls(failed=True)
    await installation.registry.stop()
    try:
        await polled.pass_()
        await polled.ended(failed + 1, failed=True)
        await polled.pass_(2.4 * INTERVAL)  # twice the previous wait
        await polled.ended(failed + 2, failed=True)
        down = await installation.get(namespace=namespace)
        assert down["metadata"]["resourceVersion"] == version
        assert down["status"]["phase"] == "Synced"
        blob = await wire.get(f"http://{installation.wasmer.host}/wasm/{_sha256(two)}")
        assert blob.status == 200
    finally:
        await installation.registry.start()
    await installation.push("stable", three, repository=repository)
    await polled.pass_(4.8 * INTERVAL)
    await polled.published(namespace, three)
    text = (await wire.get(f"http://{installation.wasmer.admin}/metrics")).body.decode()
    family = "autowasm_source_requests_total"
    counted = re.findall(rf'^{family}{{host="(.*)"}} (\S+)$', text, flags=re.MULTILINE)
    assert float(dict(counted)[installation.registry.host]) >= 5


async def test_a_bad_build_under_the_tag_is_reported_and_taken_back(
    polled: Polled, namespace: str
) -> None:
    installation, repository = polled.installation, "badbuild/hello"
    good = wat.header_filter("good build")
    image = await installation.push("stable", good, repository=repository)
    await polled.apply(image, namespace, refreshInterval=f"{INTERVAL:g}s")
    document = await polled.published(namespace, good)
    await installation.push("stable", b"\0asm\1\0\0\0", repository=repository, force=True)
    await polled.pass_()
    found = await installation.wait_phase("Degraded", namespace=namespace)
    assert found["status"]["module"] == document["status"]["module"]
    assert "is still in place" in found["status"]["message"]
    await installation.push("stable", good, repository=repository)
    await polled.pass_()
    await polled.published(namespace, good)


async def test_going_back_to_an_earlier_source_needs_no_registry(
    polled: Polled, namespace: str
) -> None:
    installation, repository = polled.installation, "reverted/hello"
    old, new = wat.header_filter("reverted old"), wat.header_filter("reverted new")
    images = [
        await installation.push(tag, module, repository=repository)
        for tag, module in (("1.0", old), ("2.0", new))
    ]
    await polled.apply(images[0], namespace)
    await polled.published(namespace, old)
    await polled.apply(images[1], namespace)
    await polled.published(namespace, new)
    await installation.registry.stop()
    try:
        await polled.apply(images[0], namespace)
        document = await polled.published(namespace, old)
    finally:
        await installation.registry.start()
    assert document["status"]["observedGeneration"] == document["metadata"]["generation"]
    assert [each["sha256"] for each in document["status"]["history"]] == [
        _sha256(old),
        _sha256(new),
    ]
