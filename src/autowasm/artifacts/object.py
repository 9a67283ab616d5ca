"""HttpObjectSource: a ModuleSource over http(s) servers of public objects.

Not for registries (`image.py`). An object has no name for its content: it is known by its URL and, where the server gives
them, its validators. Invariant: what is returned is what was fetched, with the validators of that very answer.
"""

import dataclasses
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import aiofiles

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import ObjectSource, Source
from autowasm.artifacts.source import Pinned, SourceKey
from autowasm.errors import AddressBlocked
from autowasm.limits import Limits
from autowasm.net.hosts import matches_host
from autowasm.net.pools import Pools
from autowasm.net.session import NO_VALIDATORS, ObjectSession, Validators
from autowasm.registry.credentials import ANONYMOUS_FINGERPRINT, Credential
from autowasm.wasm import binary
from autowasm.wasm.archive import extract_module

_CHUNK = 1024 * 1024
"""Bytes for one write: each is a hop to a thread, so never less."""


class HttpObjectSource:
    """`spec.filter.source.object`. Raw modules, gzip, tar and tar.gz by what the bytes are, not by name or header."""

    kind = "object"

    def __init__(self, session: ObjectSession, *, limits: Limits, pools: Pools) -> None:
        self._session = session
        self._limits = limits
        self._pools = pools

    def key(self, source: Source, credential: Credential | None) -> SourceKey:
        """Of one object: a storage host is shared by tenants, and a query is what signs, or names, an object of its own."""
        parts = urlsplit(_url(source))
        query = hashlib.sha256(parts.query.encode()).hexdigest()
        credential_key = query if parts.query else ANONYMOUS_FINGERPRINT
        return SourceKey(parts.netloc.lower(), parts.path.strip("/"), credential_key)

    async def resolve(self, source: Source, *, credential: Credential | None) -> Pinned:
        """Nothing to ask: the answer to the GET tells what the URL names, and signed URLs refuse a HEAD."""
        return Pinned(url=_url(source))

    async def has_moved(
        self, source: Source, known: Record, *, credential: Credential | None
    ) -> bool | None:
        """Nothing to ask: the GET is conditional."""
        return None

    async def pin(self, record: Record, *, credential: Credential | None) -> Pinned:
        """The URL again; whether it still holds the same bytes, only the bytes tell."""
        return Pinned(url=record.url)

    async def fetch(
        self,
        pinned: Pinned,
        destination: Path,
        *,
        workdir: Path,
        credential: Credential | None,
        on_bytes: Callable[[int], None],
    ) -> Pinned:
        """GET, then unpack; nothing if the server says that `pinned.handle`, a record, still holds.

        The digest is left to who stores the bytes: that hashes them anyway.
        Raises what `ObjectSession.stream_get` and `extract_module` raise, and AddressBlocked (`PolicyDenied`).
        """
        packed = workdir / f"{destination.name}.object"
        known = pinned.handle if isinstance(pinned.handle, Record) else None
        validators = Validators(known.etag, known.last_modified) if known else NO_VALIDATORS
        stream_of = self._session.stream_get(
            pinned.url, validators=validators, check_host=partial(_check_host, allowed=pinned.hosts)
        )
        try:
            async with stream_of as stream:
                if stream.unchanged and known is not None:
                    return dataclasses.replace(
                        pinned,
                        etag=known.etag,
                        last_modified=known.last_modified,
                        sha256=known.sha256,
                        unchanged=True,
                    )
                head, size = b"", 0
                async with aiofiles.open(packed, "wb", executor=self._pools.disk.executor) as file:
                    async for block in _blocks(stream):
                        await file.write(block)
                        on_bytes(len(block))
                        head, size = head or block[: len(binary.MAGIC)], size + len(block)
                etag, last_modified = stream.etag or "", stream.last_modified or ""
            if head.startswith(binary.MAGIC) and size <= self._limits.module_bytes:
                await self._pools.disk.run(packed.rename, destination)
            else:
                await self._pools.parsing.run(
                    extract_module, packed, destination, packing="detect", limits=self._limits
                )
        finally:
            await self._pools.disk.run(packed.unlink, missing_ok=True)
        return dataclasses.replace(pinned, etag=etag, last_modified=last_modified)


def _check_host(host: str, *, allowed: tuple[str, ...] | None) -> None:
    if allowed is None or any(matches_host(entry, host) for entry in allowed):
        return
    raise AddressBlocked(
        f"the object is (or redirects to) one on {host}, and this namespace's policy allows objects from "
        f"{', '.join(allowed) or 'nowhere'} only (wasmer --policy-file)",
        reason="PolicyDenied",
    )


def _url(source: Source) -> str:
    return cast(ObjectSource, source.object).url


async def _blocks(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in blocks of at least `_CHUNK`, but for the last."""
    gathered: list[bytes] = []
    size = 0
    async for chunk in chunks:
        gathered.append(chunk)
        size += len(chunk)
        if size >= _CHUNK:
            yield b"".join(gathered)
            gathered.clear()
            size = 0
    if gathered:
        yield b"".join(gathered)
