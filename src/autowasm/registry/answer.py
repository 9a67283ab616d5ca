"""Answer: what a registry answered, not read yet; reads it under caps, in a Transfer's thread.

Not the exchange (`transport.py`). Invariants: no body is read without a limit or the Transfer's eye on it; a failure on the
way becomes one of our errors.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from autowasm.errors import WASMER, Advice, ContentRejected
from autowasm.limits import Limits
from autowasm.net import servermessage
from autowasm.net.failures import connection_failure
from autowasm.net.servermessage import BODY_LIMIT, NOTHING_SAID, ServerMessage
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

    def __init__(
        self,
        response: Response,
        *,
        limits: Limits,
        advice: Advice = WASMER,
        secrets: tuple[str, ...] = (),
        with_login: bool = False,
    ) -> None:
        """`secrets` are cut out of `message`."""
        self.response = response
        """As it came; read it through this object."""
        self._limits = limits
        self._advice = advice
        self._secrets = secrets
        self._message: ServerMessage | None = None
        self.with_login = with_login
        """The request showed the credential, or a token that was given for it."""
        self.status = response.status_code
        self.url = response.url
        self.headers: Mapping[str, str] = response.headers

    def chunks(self) -> Iterator[bytes]:
        """The body as it was sent, in pieces of at most `limits.transfer_chunk`, as they arrive."""
        transfer = current_transfer()
        transfer.expect_body()
        while True:
            with network_errors(self.url, advice=self._advice):
                # read1 gives what is there: the loop sees progress, and nothing is copied twice.
                chunk = self.response.raw.read1(self._limits.transfer_chunk, decode_content=False)
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

    @property
    def is_page(self) -> bool:
        """Whether the body is a web page by its type: no API of a registry gives one."""
        return self.headers.get("Content-Type", "").lower().startswith("text/html")

    def message(self) -> ServerMessage:
        """What the body of an error says. Reads its beginning, within `limits.error_body_timeout`; raises nothing of it."""
        if self._message is None:
            self._message = NOTHING_SAID
            if self.response.request.method != "HEAD":
                self._message = servermessage.parse(
                    self._beginning(), self.headers.get("Content-Type", ""), secrets=self._secrets
                )
        return self._message

    def _beginning(self) -> bytes:
        """At most BODY_LIMIT bytes of the body. What is not read to its end costs the connection."""
        raw, data = self.response.raw, bytearray()
        deadline = time.monotonic() + self._limits.error_body_timeout
        transfer = current_transfer()
        with contextlib.suppress(*NETWORK_ERRORS):
            while len(data) < BODY_LIMIT and (left := deadline - time.monotonic()) > 0:
                sock = getattr(getattr(raw, "connection", None), "sock", None)
                if sock is not None:
                    sock.settimeout(left)
                chunk = raw.read1(BODY_LIMIT - len(data), decode_content=False)
                if not chunk:
                    return bytes(data)
                transfer.received(len(chunk))
                data += chunk
        self.close()
        return bytes(data)

    def discard(self) -> None:
        """Have done with it: read the little that is left, so that the connection can be used again."""
        length = self.headers.get("Content-Length", "")
        short = length.isdigit() and int(length[:12]) <= _DISCARD_LIMIT
        with contextlib.suppress(*NETWORK_ERRORS):
            if short or self.response.request.method == "HEAD":
                self.response.raw.read(_DISCARD_LIMIT + 1, decode_content=False)
        self.close()

    def close(self) -> None:
        """Give up the connection, unless the body was read to its end."""
        self.response.close()


@contextlib.contextmanager
def network_errors(url: str, *, advice: Advice = WASMER) -> Iterator[None]:
    """Turn what requests and the layers below raise into SourceUnavailable."""
    try:
        yield
    except NETWORK_ERRORS as error:
        raise connection_failure(
            error, url=url, reason="RegistryUnavailable", advice=advice
        ) from error
