"""ObjectStream: one answer with an object in it, and the validators by which a later answer can be "unchanged".

Not how it is asked for (`session.py`). Invariant: the body ends at `limits.layer_bytes`, and below the minimum rate.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import aiohttp

from autowasm.errors import ContentRejected, SourceUnavailable
from autowasm.limits import Limits
from autowasm.net.transfer import RateWatch, too_slow
from autowasm.net.urls import redact
from autowasm.units import format_size


@dataclass(frozen=True, slots=True)
class Validators:
    """What an earlier answer said about the version that it carried (RFC 9110 section 8.8)."""

    etag: str = ""
    last_modified: str = ""

    def headers(self) -> dict[str, str]:
        """Of a conditional request; the entity tag is the better one, and the other would only be ignored beside it."""
        if self.etag:
            return {"If-None-Match": self.etag}
        return {"If-Modified-Since": self.last_modified} if self.last_modified else {}


NO_VALIDATORS: Final = Validators()

_LONGEST_VALIDATOR: Final = 1024
"""Characters; real ones have below 100, and each is kept in an annotation."""


class ObjectStream:
    """An answer with status 200 (or 304): its validators, and its body to be iterated once, in chunks."""

    def __init__(self, response: aiohttp.ClientResponse, *, limits: Limits) -> None:
        self._response = response
        self._limits = limits
        self.url = str(response.url)
        """After redirects; may hold a signed query: `redact` it before it is shown."""
        self.unchanged = response.status == 304
        """The server says that the validators which it was shown still hold; there is no body."""
        self.etag = _validator(response.headers.get("ETag"))
        self.last_modified = _validator(response.headers.get("Last-Modified"))
        self.content_length = response.content_length
        """As the server announced it, in bytes. Not to be trusted."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks of the body. Raises ContentRejected (`TooLarge`) and SourceUnavailable (`TooSlow`, cut short)."""
        what = redact(self.url)
        limit = self._limits.layer_bytes
        window = self._limits.minimum_rate_after
        watch = RateWatch(minimum=self._limits.minimum_rate, window=window)
        total, waited = 0, 0.0
        watch.is_too_slow(waited, total)
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(window):
                    chunk = await self._response.content.readany()
            except TimeoutError as error:
                raise too_slow(what, limits=self._limits) from error
            except (aiohttp.ClientError, OSError) as error:
                raise SourceUnavailable(
                    f"{what}: the connection broke after {total} bytes ({type(error).__name__})",
                    reason="ObjectUnavailable",
                ) from error
            if not chunk:
                return
            # Only the time that the server took counts, not what the caller does between two chunks.
            waited += time.monotonic() - began
            total += len(chunk)
            if total > limit:
                raise too_large(what, limit=limit)
            if watch.is_too_slow(waited, total):
                raise too_slow(what, limits=self._limits)
            yield chunk


def _validator(value: str | None) -> str | None:
    """What can be kept in a record and sent back; else the object is fetched anew each time, as without a validator.

    aiohttp gives bytes above 0x7F as halves of surrogate pairs, which are no text, so no JSON.
    """
    if value is None or len(value) > _LONGEST_VALIDATOR or not value.isascii():
        return None
    return value if value.isprintable() else None


def too_large(what: str, *, limit: int) -> ContentRejected:
    """The error for more bytes than are taken."""
    return ContentRejected(f"{what}: larger than {format_size(limit)}", reason="TooLarge")
