"""Errors of the Kubernetes API, one class for each next step of the caller.

Network errors are `Unreachable`, so callers catch one tree. Invariant: a message is short (text of a server is cut at 256
characters), and contains no request or response body other than `Status.message`.
"""

from typing import Final

import msgspec

TEXT_LIMIT: Final = 256
"""Characters kept of a server's text: enough to understand it, too few to flood a log or a status."""


class ApiError(Exception):
    """An unsuccessful call of the API server. `code` is the HTTP status (0: no answer), `reason` is Status.reason."""

    def __init__(
        self,
        message: str,
        *,
        code: int = 0,
        reason: str = "",
        retry_after: float | None = None,
        causes: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after = retry_after
        """Seconds from now that the server requested."""
        self.causes = causes
        """`details.causes[].reason`."""


class BadRequest(ApiError):
    """400: the server does not understand the request (for example, an unknown parameter)."""


class Unauthorized(ApiError):
    """401: the server does not accept the credentials. Tokens are read again, so a retry can help."""


class Forbidden(ApiError):
    """403: a rule (RBAC, quota, a terminating namespace) forbids the request."""

    @property
    def namespace_terminating(self) -> bool:
        """Nothing can be created in a namespace that is being deleted; a retry cannot help."""
        return "NamespaceTerminating" in self.causes


class NotFound(ApiError):
    """404: the object, or the whole resource, does not exist."""


class Conflict(ApiError):
    """409: another client wrote first. Read again, then retry."""


class AlreadyExists(Conflict):
    """409 on create: an object of this name exists."""


class Expired(ApiError):
    """410: the resourceVersion or continue token is too old. List again."""


class Invalid(ApiError):
    """422: the object is invalid. Retrying the same object cannot help."""


class TooManyRequests(ApiError):
    """429: retry after `retry_after`."""


class ServerError(ApiError):
    """5xx: the server, or a proxy before it, fails. Retry with backoff."""


class TooLargeResourceVersion(ServerError):
    """504 or 500 with cause ResourceVersionTooLarge: this server has not seen that version yet. List without one."""


class Unreachable(ApiError):
    """No answer: refused, reset, timed out, name not found, TLS. Retry with backoff."""


class UnexpectedAnswer(ApiError):
    """An answer that is not from Kubernetes: a proxy's page, a line that is not an event, a line above the limit."""


class AnswerTooLong(UnexpectedAnswer):
    """An answer above the limit of bytes. Request smaller parts, if the resource allows it."""


class VeryShortWatch(Unreachable):
    """A watch that ended at once without an event (client-go's name). Resume after a pause."""


class WatchFrozen(Unreachable):
    """A watch without data for longer than the longest silence of this server. Resume on another connection."""


class StaleWatch(Expired):
    """Repeated watches at one resourceVersion without an event. List again."""


class _Cause(msgspec.Struct):
    reason: str = ""


class _Details(msgspec.Struct):
    causes: list[_Cause] = []
    retryAfterSeconds: float | None = None  # noqa: N815 as on the wire


class Status(msgspec.Struct):
    """The fields of `v1.Status` that we read: the body of an error answer, and the object of an ERROR event."""

    kind: str = ""
    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_STATUS = msgspec.json.Decoder(Status)

_BY_CODE: Final[dict[int, type[ApiError]]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Expired,
    422: Invalid,
    429: TooManyRequests,
}
_TOO_LARGE_CAUSE: Final = "ResourceVersionTooLarge"
_TOO_LARGE_MESSAGE: Final = "Too large resource version"  # before 1.17 there is no cause


def from_response(
    code: int, body: bytes, *, retry_after: float | None = None, request: str = ""
) -> ApiError:
    """The error for an unsuccessful HTTP status. `request` (method and path) goes into the message."""
    try:
        status = _STATUS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        status = Status()
    if status.kind != "Status":  # not from the API server: a proxy's page, or plain text
        status = Status(message=_cut(body[: 4 * TEXT_LIMIT].decode(errors="replace")))
    return from_status(status, code=code, retry_after=retry_after, request=request)


def from_status(
    status: Status, *, code: int = 0, retry_after: float | None = None, request: str = ""
) -> ApiError:
    """The error of a Status. `code` and `retry_after` of the HTTP answer take precedence over those of the body."""
    code = code or status.code
    details = status.details or _Details()
    causes = frozenset(cause.reason for cause in details.causes)
    kind = _class_for(code, status, causes)
    wait = retry_after if retry_after is not None else details.retryAfterSeconds
    text = _cut(status.message) or "no message"
    where = f"{request}: " if request else ""
    return kind(
        f"{where}{code} {_cut(status.reason)}: {text}".replace(" :", ":"),
        code=code,
        reason=status.reason,
        retry_after=wait,
        causes=causes,
    )


def _class_for(code: int, status: Status, causes: frozenset[str]) -> type[ApiError]:
    if status.reason == "AlreadyExists":
        return AlreadyExists
    if status.reason in {"Expired", "Gone"}:
        return Expired
    if code >= 500:
        too_large = _TOO_LARGE_CAUSE in causes or _TOO_LARGE_MESSAGE in status.message
        return TooLargeResourceVersion if too_large else ServerError
    return _BY_CODE.get(code, UnexpectedAnswer if code < 400 else ApiError)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
