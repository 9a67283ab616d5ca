"""URLs in logs and in redirects: pure functions over text.

Invariant: a result of `redact` has no query, no fragment and no user information, which hold presigned signatures and tokens.
"""

from urllib.parse import SplitResult, urljoin, urlsplit

from autowasm.errors import AddressBlocked, SourceUnavailable
from autowasm.reasons import Reason

_DEFAULT_PORTS = {"http": 80, "https": 443}


def redact(url: str) -> str:
    """`url` for a message or a log: scheme, host, port and path only. Never raises."""
    try:
        parts = urlsplit(url)
        host = _host_and_port(parts)
    except ValueError:
        return "(a malformed URL)"
    path = parts.path if len(parts.path) <= 200 else parts.path[:200] + "…"
    return ascii(f"{parts.scheme}://{host}{path}")[1:-1]  # escapes control sequences of a terminal


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host, port: credentials are bound to them (RFC 6454). Raises ValueError."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    port = parts.port if parts.port is not None else _DEFAULT_PORTS.get(scheme, 0)
    return scheme, (parts.hostname or "").lower().rstrip("."), port


def check_web_url(url: str, *, what: str) -> None:
    """Raise AddressBlocked unless `url` is http or https, has a host, and carries no user information."""
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError as error:
        raise AddressBlocked(f"{what} is not a URL", reason=Reason.URL_NOT_ALLOWED) from error
    if parts.scheme.lower() not in _DEFAULT_PORTS or not parts.hostname or not port_is_fine:
        raise AddressBlocked(
            f"{what} is not an http or https URL: {redact(url)}", reason=Reason.URL_NOT_ALLOWED
        )
    if parts.username is not None or parts.password is not None:
        raise AddressBlocked(
            f"{what} contains a user name or password, which is not supported: {redact(url)}",
            reason=Reason.URL_NOT_ALLOWED,
        )


def check_port(parts: SplitResult) -> None:
    """Raise ValueError for an invalid port; a URL without one is valid (RFC 3986 section 3.2.3 allows an empty one)."""
    try:
        port = parts.port
    except ValueError as error:  # urllib's message names neither the field nor the bounds
        raise ValueError("the port must be a number from 1 to 65535") from error
    if port == 0:
        raise ValueError("the port must be a number from 1 to 65535")


def next_hop(url: str, location: str | None, *, hops: int, limit: int) -> str:
    """The target of the redirect number `hops` (1 is the first) from `url`.

    Raises SourceUnavailable (`TooManyRedirects`, `UnexpectedAnswer`) and AddressBlocked (`UrlNotAllowed`: another scheme,
    user information, or a step down from https to http).
    """
    if hops > limit:
        raise SourceUnavailable(
            f"{redact(url)} redirects more than {limit} times", reason=Reason.TOO_MANY_REDIRECTS
        )
    if not location:
        raise SourceUnavailable(
            f"{redact(url)} answers with a redirect without a location",
            reason=Reason.UNEXPECTED_ANSWER,
        )
    try:
        target = urljoin(url, location.strip())
    except ValueError as error:
        raise AddressBlocked(
            f"{redact(url)} redirects to an invalid URL", reason=Reason.URL_NOT_ALLOWED
        ) from error
    check_web_url(target, what=f"the redirect of {redact(url)}")
    if url.lower().startswith("https:") and not target.lower().startswith("https:"):
        raise AddressBlocked(
            f"{redact(url)} redirects from https to plain http ({redact(target)}), which is refused",
            reason=Reason.URL_NOT_ALLOWED,
        )
    return target


def _host_and_port(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    return host if parts.port is None else f"{host}:{parts.port}"
