"""One call of the API: what is asked, and what an answer, or its absence, means.

Not the sending (`client.py`). Invariant: a message names method and path, never a query, a header or a body.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import aiohttp

from autowasm.kube.errors import (
    AnswerTooLong,
    ApiError,
    UnexpectedAnswer,
    Unreachable,
    from_response,
)
from autowasm.net.responses import retry_after

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Query = Mapping[str, str]
Document = dict[str, Any]

JSON: Final = "application/json"
_ERROR_BODY_BYTES: Final = 64 * 1024
_SHOWN: Final = 256

NO_ANSWER: Final = (
    aiohttp.ClientError,
    aiohttp.http_exceptions.HttpProcessingError,
    OSError,
)
"""What aiohttp raises in place of an answer. OSError holds TimeoutError and ssl.SSLError."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked. Its text is for messages: no query, no body."""

    method: Method
    path: str
    query: Query
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    content_type: str = JSON

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


async def read_body(response: aiohttp.ClientResponse, *, limit: int) -> bytearray:
    """The whole body. Raises AnswerTooLong above `limit` bytes."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise AnswerTooLong(
                f"{response.method} {response.url.path}: the answer is longer than {limit} bytes"
            )
    return body


async def refusal(response: aiohttp.ClientResponse, call: Call) -> ApiError:
    """The error that an answer with another status than 2xx is."""
    try:
        body = bytes(await read_body(response, limit=_ERROR_BODY_BYTES))
    except UnexpectedAnswer:
        body = b""
    wait = retry_after(response.headers.get("Retry-After"))
    return from_response(response.status, body, retry_after=wait, request=str(call))


def no_answer(error: BaseException, call: Call) -> Unreachable:
    """The error that one of NO_ANSWER is."""
    what = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    return Unreachable(f"{call}: {type(error).__name__}: {what[:_SHOWN]}")
