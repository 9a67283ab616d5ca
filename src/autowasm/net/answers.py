"""What an HTTP status and `Retry-After` mean for a fetch: one table for registries and objects.

Not a retry loop. Invariant: every status that is not the wanted one becomes one of our errors, chosen by what the caller
should do next (design D14).
"""

import datetime
import email.utils
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from autowasm.errors import AutoWasmError, SourceDenied, SourceNotFound, SourceUnavailable

LATER: Final = frozenset({408, 425, 429})
"""Besides 5xx: the server says, or means, "try again later"."""

LONGEST_RETRY_AFTER: Final = 24 * 3600.0
"""Seconds. A server that asks for more is read as this much: nobody waits a year because of a typo."""


@dataclass(frozen=True, slots=True)
class Answerer:
    """How one kind of source names itself: `what` in messages, and its condition reasons."""

    what: str
    not_found: str
    unavailable: str
    denied_hint: str
    detail: str = ""


def error_for(
    status: int,
    headers: Mapping[str, str],
    *,
    answerer: Answerer,
    now: datetime.datetime | None = None,
) -> AutoWasmError:
    """The error for an answer that was not the wanted one.

    404, 410 → SourceNotFound; 401, 403 → SourceDenied; 408, 425, 429, 5xx → SourceUnavailable with `Retry-After`; any
    other → SourceUnavailable (`UnexpectedAnswer`).
    """
    detail = f" ({answerer.detail})" if answerer.detail else ""
    if status in (404, 410):
        return SourceNotFound(
            f"{answerer.what} does not exist: status {status}{detail}", reason=answerer.not_found
        )
    if status in (401, 403):
        return SourceDenied(
            f"{answerer.what} is refused: status {status}{detail}; {answerer.denied_hint}"
        )
    if status in LATER or status >= 500:
        return SourceUnavailable(
            f"{answerer.what} is not available now: status {status}{detail}",
            reason=answerer.unavailable,
            retry_after=retry_after(headers.get("Retry-After"), now=now),
        )
    return SourceUnavailable(
        f"{answerer.what} gave an answer that makes no sense here: status {status}{detail}",
        reason="UnexpectedAnswer",
    )


def retry_after(value: str | None, *, now: datetime.datetime | None = None) -> float | None:
    """Seconds from now for both forms of RFC 9110 section 10.2.3; None if absent or not understood."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), LONGEST_RETRY_AFTER)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    seconds = (when - (now or datetime.datetime.now(datetime.UTC))).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
