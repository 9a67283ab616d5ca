"""Answer: what a registry answered, not read yet; reads it under caps, in a Transfer's thread.

Not the exchange (`transport.py`). Invariants: no body is read without a limit or the Transfer's eye on it; a failure on the
way becomes one of our errors.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from autowasm.errors import ContentRejected
from autowasm.limits import Limits
from autowasm.net.failures import connection_failure
from autowasm.net.threads import NETWORK_ERRORS
from autowasm.net.transfer import current_transfer
from autowasm.units import format_size

_DISCARD_LIMIT: Final = 64 * 1024
"""An unwanted body up to this size is read, to keep the connection; a longer one costs the connection."""


class Response(Protocol):
    """`requests.Response`, as far as it is used."""

    status_code: int
    url: str
    headers: Any
    raw: Any
    request: Any

    def close(self) -> None:
        """Give up the connection, unless the body was read to its end."""


class Answer:
    """The answer to one request, not read yet."""

    def __init__(self, response: Response, *, limits: Limits) -> None:
        self._response = response
        self._limits = limits
        self.status = response.status_code
        self.url = response.url
        self.headers: Mapping[str, str] = response.headers

    def chunks(self) -> Iterator[bytes]:
        """The body as it was sent, in pieces of at most `limits.transfer_chunk`, as they arrive."""
        transfer = current_transfer()
        transfer.expect_body()
        while True:
            with network_errors(self.url):
                # read1 gives what is there: the loop sees progress, and nothing is copied twice.
                chunk = self._response.raw.read1(self._limits.transfer_chunk, decode_content=False)
            if not chunk:
                break
            transfer.received(len(chunk))
            yield chunk
        transfer.expect_nothing()

    def read(self, *, limit: int, what: str) -> bytes:
        """The whole body. Raises ContentRejected (`TooLarge`) past `limit` bytes."""
        data = bytearray()
        for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                raise ContentRejected(
                    f"{what}: larger than {format_size(limit)}", reason="TooLarge"
                )
        return bytes(data)

    def discard(self) -> None:
        """Have done with it: read the little that is left, so that the connection can be used again."""
        length = self.headers.get("Content-Length", "")
        short = length.isdigit() and int(length[:12]) <= _DISCARD_LIMIT
        with contextlib.suppress(*NETWORK_ERRORS):
            if short or self._response.request.method == "HEAD":
                self._response.raw.read(_DISCARD_LIMIT + 1, decode_content=False)
        self.close()

    def close(self) -> None:
        """Give up the connection, unless the body was read to its end."""
        self._response.close()


@contextlib.contextmanager
def network_errors(url: str) -> Iterator[None]:
    """Turn what requests and the layers below raise into SourceUnavailable."""
    try:
        yield
    except NETWORK_ERRORS as error:
        raise connection_failure(error, url=url, reason="RegistryUnavailable") from error
