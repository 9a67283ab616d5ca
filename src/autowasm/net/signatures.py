"""Signed URLs of object stores: until when one is good, read from its own query.

Verifies nothing. Invariant: no part of a query is in a result but a time (`query_secrets` is for cutting them out of messages).

Sources: AWS Signature Version 4 (`X-Amz-Date`, `X-Amz-Expires`) and 2 (`Expires`), Google Cloud Storage V4
(`X-Goog-Date`, `X-Goog-Expires`), Tencent COS (`q-sign-time=START;END`), Alibaba OSS (`Expires`, `x-oss-date`), Azure SAS
(`se`), CloudFront (`Expires`).
"""

import contextlib
import datetime
from typing import Final
from urllib.parse import parse_qsl, unquote_plus, urlsplit

from autowasm.net.servermessage import ServerMessage

_SIGNATURES: Final = frozenset(
    {
        "x-amz-signature",
        "x-goog-signature",
        "x-oss-signature",
        "q-signature",
        "signature",
        "sig",
        "sign",
        "x-amz-expires",
        "x-goog-expires",
        "x-amz-security-token",
        "policy",
        "token",
        "access_token",
        "private_token",
        "job_token",
        "jwt",
    }
)
_SHORTEST_VALUE: Final = 8
"""Characters. Shorter values (`60`, `v4`) are no secrets, and are words of sentences."""


def signature_hint(
    url: str, said: ServerMessage, *, now: datetime.datetime, redirected: bool = False
) -> str:
    """What to do about an object that is refused. Objects are fetched without credentials.

    `redirected`: `url` is not that of the spec, but one that the spec's server redirected to.
    """
    if redirected and is_signed(url):
        return "the server that redirects there must sign the URL again: the signature has expired or is refused"
    if not is_signed(url):
        return "objects are fetched without credentials: use a URL that needs none, or a signed one"
    until = signed_until(url)
    if until is not None and until <= now:
        return (
            f"the signature in its URL has expired at {until:%Y-%m-%dT%H:%M:%SZ}; put a new URL into the spec, or use one that "
            "does not expire"
        )
    if said.mentions("not valid yet", "not yet valid"):
        return "the signature in its URL is not valid yet; check the clock of the machine that signed it"
    if said.mentions("expire"):
        return "the signature in its URL has expired; put a new URL into the spec, or use one that does not expire"
    return "the signature in its URL is refused: it may have expired, or the URL was changed after it was signed"


def is_signed(url: str) -> bool:
    """Whether the query has the fields of a signature."""
    return not _SIGNATURES.isdisjoint(_fields(url))


def query_secrets(url: str) -> tuple[str, ...]:
    """The values of the query, as they are written and as they are meant: a server may send them back."""
    with contextlib.suppress(ValueError):
        written = [part.partition("=")[2] for part in urlsplit(url).query.split("&")[:200]]
        forms = dict.fromkeys([*written, *map(unquote_plus, written)])
        return tuple(value for value in forms if len(value) >= _SHORTEST_VALUE)
    return ()


def signed_until(url: str) -> datetime.datetime | None:
    """When the signature ends, by the URL's own word; None if it does not say."""
    fields = _fields(url)
    if "q-sign-time" in fields:
        return _at(fields["q-sign-time"].rpartition(";")[2])
    for prefix in ("x-amz", "x-goog", "x-oss"):
        begin = _compact(fields.get(f"{prefix}-date", ""))
        seconds = fields.get(f"{prefix}-expires", "")
        if begin is not None and seconds.isascii() and seconds.isdigit():
            return _later(begin, min(int(seconds[:12]), 10 * 366 * 86400))
    if "se" in fields and "sig" in fields:
        return _iso(fields["se"])
    return _at(fields.get("expires", ""))


def _fields(url: str) -> dict[str, str]:
    """Names in lower case; the first of each name counts."""
    try:
        pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True, max_num_fields=200)
    except ValueError:
        return {}
    return {name.lower(): value for name, value in reversed(pairs)}


def _at(seconds: str) -> datetime.datetime | None:
    if not (seconds.isascii() and seconds.isdigit()) or len(seconds) > 12:
        return None
    return _later(datetime.datetime.fromtimestamp(0, datetime.UTC), int(seconds))


def _later(begin: datetime.datetime, seconds: int) -> datetime.datetime | None:
    """None behind the year 9999."""
    try:
        return begin + datetime.timedelta(seconds=seconds)
    except OverflowError:
        return None


def _compact(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        return None


def _iso(text: str) -> datetime.datetime | None:
    try:
        found = datetime.datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).astimezone(
            datetime.UTC
        )
    except (ValueError, OverflowError):
        return None
