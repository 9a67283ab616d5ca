"""HttpObjectSource: a ModuleSource over http(s) servers of public objects.

An object has no digest in its name: its URL identifies it, with its validators if the server sends them. Invariant: the
result describes the bytes that were fetched, with the validators of that response.
"""

import dataclasses
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from autowasm.api.record import Record
from autowasm.api.v1alpha1 import ObjectSource, Source
from autowasm.artifacts.source import Pinned, SourceKey
from autowasm.blobs import files
from autowasm.errors import AddressBlocked
from autowasm.limits import Limits
from autowasm.net.hosts import matches_host
from autowasm.net.pools import Pools
from autowasm.net.session import NO_VALIDATORS, ObjectSession, Validators
from autowasm.reasons import Reason
from autowasm.registry.credentials import ANONYMOUS_FINGERPRINT, Credential
from autowasm.wasm import binary
from autowasm.wasm.archive import extract_module

_CHUNK = 1024 * 1024
"""Bytes for one write, at least: each write is a hop to a thread."""


class HttpObjectSource:
    """`spec.filter.source.object`: raw modules, gzip, tar and tar.gz, detected by their bytes, not by name or header."""

    kind = "object"

    def __init__(self, session: ObjectSession, *, limits: Limits, pools: Pools) -> None:
        self._session = session
        self._limits = limits
        self._pools = pools

    def key(self, source: Source, credential: Credential | None) -> SourceKey:
        """A key for each object: tenants share a storage host, and a query signs, or names, an object of its own."""
        parts = urlsplit(_url(source))
        query = hashlib.sha256(parts.query.encode()).hexdigest()
        credential_key = query if parts.query else ANONYMOUS_FINGERPRINT
        return SourceKey(parts.netloc.lower(), parts.path.strip("/"), credential_key)

    async def resolve(self, source: Source, *, credential: Credential | None) -> Pinned:
        """Sends no request: the response to the GET shows what the URL names, and signed URLs refuse a HEAD."""
        return Pinned(url=_url(source))

    async def has_moved(
        self, source: Source, known: Record, *, credential: Credential | None
    ) -> bool | None:
        """Sends no request: the GET is conditional."""
        return None

    async def pin(self, record: Record, *, credential: Credential | None) -> Pinned:
        """The URL again. Only the bytes can show whether the content is the same."""
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
        """GET, then unpack. Nothing is written if the server answers that the record in `pinned.handle` is still valid.

        The digest is computed when the store hashes the bytes. Raises the errors of `ObjectSession.stream_get` and
        `extract_module`, and AddressBlocked (`PolicyDenied`).
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
                async with files.create(self._pools.disk, packed) as file:
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
        f"the object's URL is on {host}, or redirects to it; this namespace's policy (wasmer --policy-file) "
        f"allows objects only from: {', '.join(allowed) or '(no host)'}",
        reason=Reason.POLICY_DENIED,
    )


def _url(source: Source) -> str:
    return cast(ObjectSource, source.object).url


async def _blocks(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in blocks of at least `_CHUNK`, except the last."""
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
