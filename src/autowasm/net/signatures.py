"""Signed URLs of object stores: until when one is good, read from its own query.

Verifies nothing. Invariant: no part of a query is in a result but a time.

Sources: AWS Signature Version 4 (`X-Amz-Date`, `X-Amz-Expires`) and 2 (`Expires`), Google Cloud Storage V4
(`X-Goog-Date`, `X-Goog-Expires`), Tencent COS (`q-sign-time=START;END`), Alibaba OSS (`Expires`, `x-oss-date`), Azure SAS
(`se`), CloudFront (`Expires`).
"""

import datetime
from typing import Final
from urllib.parse import parse_qsl, urlsplit

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
    }
)
_LATEST: Final = 2**40  # seconds since 1970; later ones are no dates of ours


def signature_hint(url: str, said: ServerMessage, *, now: datetime.datetime) -> str:
    """What to do about an object that is refused. Objects are fetched without credentials."""
    if not is_signed(url):
        return "objects are fetched without credentials: use a URL that needs none, or a signed one"
    until = signed_until(url)
    if until is not None and until <= now:
        return (
            f"the signature in its URL has expired at {until:%Y-%m-%dT%H:%M:%SZ}; put a new URL into the spec, or use one that "
            "does not expire"
        )
    if said.mentions("expire"):
        return "the signature in its URL has expired; put a new URL into the spec, or use one that does not expire"
    return "the signature in its URL is refused: it may have expired, or the URL was changed after it was signed"


def is_signed(url: str) -> bool:
    """Whether the query has the fields of a signature."""
    return not _SIGNATURES.isdisjoint(_fields(url))


def signed_until(url: str) -> datetime.datetime | None:
    """When the signature ends, by the URL's own word; None if it does not say."""
    fields = _fields(url)
    if "q-sign-time" in fields:
        return _at(fields["q-sign-time"].rpartition(";")[2])
    for prefix in ("x-amz", "x-goog", "x-oss"):
        begin = _compact(fields.get(f"{prefix}-date", ""))
        seconds = fields.get(f"{prefix}-expires", "")
        if begin is not None and seconds.isascii() and seconds.isdigit():
            return begin + datetime.timedelta(seconds=min(int(seconds[:12]), 10 * 366 * 86400))
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
    if not 0 < int(seconds) < _LATEST:
        return None
    try:
        return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _compact(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        return None


def _iso(text: str) -> datetime.datetime | None:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
