"""Faults of the disks and sources of replicas, and a client that stops in the middle of a download.

The assertions are in the tests. Invariant: each fault reports whether it had an effect.
"""

import asyncio
import base64
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts import wire
from tests.parts.fleet import Fleet
from tests.parts.installation import PASSWORD, USER
from tests.parts.wasmer import Wasmer

BLOCKED_AFTER = 64 * 1024
"""Bytes that a client reads before it stops; its receive buffer is about as large."""


def blob_file(replica: Wasmer, digest: str) -> Path:
    """The file in which a replica stores the module."""
    return replica.directory / "cache" / "blobs" / digest


def identity(path: Path) -> tuple[int, int]:
    """A value that changes when the file is rewritten."""
    found = path.stat()
    return found.st_ino, found.st_ctime_ns


def empty(replica: Wasmer) -> None:
    """Remove all files and folders in the cache of a running replica."""
    cache = replica.directory / "cache"
    while cache.exists():  # the replica may be writing there
        shutil.rmtree(cache, ignore_errors=True)


async def stop_all(fleet: Fleet) -> None:
    """kill -9 of all of them."""
    for replica in fleet.replicas:
        await fleet.kill(replica)


async def start_all(fleet: Fleet) -> None:
    """Start all at once, as after a power cut. Returns when all of them are ready."""
    async with asyncio.TaskGroup() as group:
        for replica in fleet.replicas:
            group.create_task(fleet.start(replica), name="start")


async def delete_image(fleet: Fleet, image: str) -> None:
    """Delete the manifest of `image` (`host/repository@sha256:...`) from the registry, like `crane delete`."""
    name, _, digest = image.partition("@")
    repository = name.partition("/")[2].partition(":")[0]
    url = f"{fleet.installation.registry.url}/v2/{repository}/manifests/{digest}"
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    headers = {
        "authorization": f"Basic {login}",
        "accept": "application/vnd.oci.image.manifest.v1+json",
    }
    deleted = await wire.request("DELETE", url, headers=headers)
    assert deleted.status == 202, deleted
    answer = await wire.get(url, headers=headers)
    assert answer.status == 404, "the fault had an effect"


@dataclass(frozen=True, slots=True)
class Stopped:
    """A client in the middle of a download: `head` is the part that it has read."""

    endpoint: socket.socket
    head: bytes

    async def rest(self, *, timeout: float = 60) -> bytes:
        """All bytes until the connection ends, for any reason."""
        loop, parts = asyncio.get_running_loop(), [self.head]
        async with asyncio.timeout(timeout):
            try:
                while part := await loop.sock_recv(self.endpoint, 1 << 20):
                    parts.append(part)
            except ConnectionResetError:
                pass
        return b"".join(parts)

    async def body(self) -> tuple[bytes, int]:
        """The bytes of the body, and the length that the head announced."""
        head, _, body = (await self.rest()).partition(b"\r\n\r\n")
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        return body, int(lines[b"content-length"])


@asynccontextmanager
async def stopped_client(replica: Wasmer, digest: str) -> AsyncIterator[Stopped]:
    """A download that has received the beginning of the module and then reads nothing until it is resumed."""
    address, _, port = replica.host.rpartition(":")
    loop = asyncio.get_running_loop()
    with socket.socket() as endpoint:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCKED_AFTER)
        endpoint.setblocking(False)
        await loop.sock_connect(endpoint, (address, int(port)))
        head = f"GET /wasm/{digest} HTTP/1.1\r\nhost: {replica.host}\r\nconnection: close\r\n\r\n"
        await loop.sock_sendall(endpoint, head.encode())
        got = b""
        while len(got) < BLOCKED_AFTER:
            part = await loop.sock_recv(endpoint, BLOCKED_AFTER)
            assert part, got
            got += part
        assert got.startswith(b"HTTP/1.1 200 "), got[:200]
        yield Stopped(endpoint, got)


def truncate(path: Path) -> None:
    """Truncate the file to half its length."""
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    """Overwrite the file in place with other bytes of the same length."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xa5" * size)


def replace(path: Path) -> None:
    """Replace the file by another one with other bytes."""
    other = path.with_name(f".{path.name}.other")
    other.write_bytes(b"\xa5" * path.stat().st_size)
    other.rename(path)
