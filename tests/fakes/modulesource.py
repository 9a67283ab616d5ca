"""FakeSource: a ModuleSource that answers, fails, or hangs at a step, as a test requires.

Integration tests use real registries; this is for behaviour that they cannot show at a given moment.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import Source
from autowasm.artifacts.source import Pinned, SourceKey
from autowasm.digest import Sha256Hex
from autowasm.errors import SourceNotFound
from autowasm.reference import ImageReference
from autowasm.registry.credentials import Credential, fingerprint_of


def sha256_of(data: bytes) -> Sha256Hex:
    """The sha256 of a module."""
    return Sha256Hex(hashlib.sha256(data).hexdigest())


@dataclass
class FakeSource:
    """Images by `host/repository:tag`; their digests are made from their content."""

    kind: str = "registry"
    images: dict[str, bytes] = field(default_factory=dict)
    layer_is_module: bool = False
    """Whether a manifest already contains the module's digest."""
    steps: list[str] = field(default_factory=list)
    """The calls, in order: `resolve IMAGE`, `pin IMAGE`, `fetch IMAGE`."""
    failures: dict[str, Exception] = field(default_factory=dict)
    """By step (`fetch`) or step with credential (`fetch alice`): an error that is raised until it is removed."""
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """By step: an event that the step waits for."""
    running: int = 0
    most_running: int = 0
    _contents: dict[str, bytes] = field(default_factory=dict)

    def add(self, image: str, data: bytes) -> str:
        """Create (or move) a tag; returns the image by digest."""
        self.images[image] = data
        pinned = self._pinned_name(image, data)
        self._contents[pinned] = data
        return pinned

    def key(self, source: Source, credential: Credential | None) -> SourceKey:
        assert source.registry is not None
        reference = ImageReference.parse(source.registry.image)
        return SourceKey(reference.host, reference.repository, fingerprint_of(credential))

    async def resolve(self, source: Source, *, credential: Credential | None) -> Pinned:
        assert source.registry is not None
        image = source.registry.image
        await self._step("resolve", image, credential)
        if image not in self.images:
            raise SourceNotFound(f"{image} is not there", reason="ImageNotFound")
        return self._pinned(self._pinned_name(image, self.images[image]))

    async def has_moved(
        self, source: Source, known: Record, *, credential: Credential | None
    ) -> bool | None:
        assert source.registry is not None
        image = source.registry.image
        await self._step("head", image, credential)
        if image not in self.images:
            raise SourceNotFound(f"{image} is not there", reason="ImageNotFound")
        return self._pinned_name(image, self.images[image]) != known.image

    async def pin(self, record: Record, *, credential: Credential | None) -> Pinned:
        await self._step("pin", record.image, credential)
        if record.image not in self._contents:
            raise SourceNotFound(f"{record.image} is not there", reason="ImageNotFound")
        return self._pinned(record.image)

    async def fetch(
        self,
        pinned: Pinned,
        destination: Path,
        *,
        workdir: Path,
        credential: Credential | None,
        on_bytes: Callable[[int], None],
    ) -> Pinned:
        await self._step("fetch", pinned.image, credential)
        data = self._contents[pinned.image]
        await asyncio.to_thread(destination.write_bytes, data)
        on_bytes(len(data))
        return Pinned(image=pinned.image, sha256=sha256_of(data))

    async def _step(self, step: str, image: str, credential: Credential | None) -> None:
        self.steps.append(f"{step} {image}")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            who = credential.username if credential else "anonymous"
            for name in (step, f"{step} {who}"):
                if name in self.gates:
                    await self.gates[name].wait()
            await asyncio.sleep(0)
            for name in (step, f"{step} {who}"):
                if name in self.failures:
                    raise self.failures[name]
        finally:
            self.running -= 1

    def _pinned(self, image: str) -> Pinned:
        known = sha256_of(self._contents[image]) if self.layer_is_module else None
        size = len(self._contents[image]) if self.layer_is_module else None
        return Pinned(image=image, sha256=known, size=size)

    @staticmethod
    def _pinned_name(image: str, data: bytes) -> str:
        reference = ImageReference.parse(image)
        return f"{reference.name}@sha256:{hashlib.sha256(b'manifest of ' + data).hexdigest()}"

    def count(self, step: str) -> int:
        """The number of calls of the step."""
        return sum(each.startswith(f"{step} ") for each in self.steps)
