"""The body of a peer's answer, in chunks: as long as it promised, and not a trickle.

Not what the bytes are: the store checks the digest. Invariant: more than the promised bytes are never passed on.
"""

import time
from collections.abc import AsyncIterator
from typing import Final

import aiohttp

from autowasm.net.transfer import RateWatch
from autowasm.settings import PeerSettings

_CHUNK: Final = 256 * 1024


class Unusable(Exception):
    """A peer's answer is of no use. The message says why."""


async def module_chunks(
    content: aiohttp.StreamReader, size: int, *, settings: PeerSettings
) -> AsyncIterator[bytes]:
    """`size` bytes. Raises Unusable for fewer, more, or a trickle; aiohttp.ClientError and OSError for a broken connection."""
    watch = RateWatch(minimum=settings.minimum_rate, window=settings.rate_window)
    received, waited = 0, 0.0
    watch.is_too_slow(waited, received)
    while True:
        began = time.monotonic()
        chunk = await content.read(_CHUNK)
        # Only the time that the peer took counts, not what the disk does between two chunks.
        waited += time.monotonic() - began
        received += len(chunk)
        if not chunk or received > size:
            break
        if received < size and watch.is_too_slow(waited, received):
            raise Unusable(f"it sent {received} bytes in {waited:.1f} s")
        yield chunk
    if received != size:
        raise Unusable(f"it sent {received} bytes of {size}")
