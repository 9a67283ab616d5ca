"""When a failed fetch is tried again: by what the error says to do (docs/architecture.md, Errors). Pure.

Not a timer. Invariant: an error that only a change of the spec can mend is never retried by itself.
"""

from autowasm.api.v1alpha1 import Source
from autowasm.artifacts.fetcher import DAMAGED_ON_THE_WAY
from autowasm.backoff import Backoff
from autowasm.errors import (
    AddressBlocked,
    ContentRejected,
    SecretAccessForbidden,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    SpecError,
    StorageError,
)
from autowasm.limits import FetchLimits
from autowasm.reference import ImageReference


def retry_delay(
    error: Exception, *, failures: int, source: Source, limits: FetchLimits
) -> float | None:
    """Seconds until the next try after `failures` failures in a row; None: not before something changes."""
    backoff = Backoff(limits.retry_base, limits.retry_maximum)
    if isinstance(error, AddressBlocked):
        return None
    if isinstance(error, SpecError):
        # Of a fetch, only the pull secret: it is not watched, and mending it changes no spec.
        return Backoff(limits.denied_retry, limits.denied_retry).delay(1)
    if isinstance(error, ContentRejected) and error.reason not in DAMAGED_ON_THE_WAY:
        if source.registry is not None and ImageReference.parse(source.registry.image).is_pinned:
            return None
        return Backoff(limits.not_found_retry, limits.not_found_retry).delay(1)
    if isinstance(error, SourceDenied) and not isinstance(error, SecretAccessForbidden):
        return Backoff(limits.denied_retry, limits.denied_retry).delay(1)
    if isinstance(error, SourceNotFound):
        return Backoff(limits.not_found_first, limits.not_found_retry).delay(failures)
    if isinstance(error, SourceUnavailable):
        return max(backoff.delay(failures), error.retry_after or 0.0)
    if isinstance(error, StorageError):
        return Backoff(limits.retry_base, limits.storage_retry).delay(failures)
    return backoff.delay(failures)
