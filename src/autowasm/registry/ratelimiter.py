"""Rate limiter: limits the requests per second to a host, and observes the pauses that a host requests (429, `Retry-After`).

Not a retry loop (see `client.py`). Not a limit of concurrent fetches (see `artifacts/fetchlimiter.py`). Invariants: a host gets
at most `burst` requests at once and `rate` a second on average, for all callers together; a pause that a host requests for
one credential applies to every repository with that credential, and to no other credential.

Sources: RFC 6585 section 4 (429), RFC 9110 section 10.2.3 (Retry-After).
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cachetools import FIFOCache, LRUCache

from autowasm.errors import SourceUnavailable
from autowasm.flowcontrol import Backoff, TokenBucket
from autowasm.limits import Limits
from autowasm.net.errors import retry_after
from autowasm.reasons import Reason

_MAX_KEPT: Final = 10_000
"""Hosts, and hosts with credentials, that are remembered; the oldest are evicted. They come from tenants."""


@dataclass(slots=True)
class _Pause:
    until: float = 0.0
    in_a_row: int = 0


class HostRateLimiter:
    """The rate limiter of one process. Safe in any thread. `clock` in seconds, monotonic."""

    def __init__(
        self,
        *,
        rate: float,
        burst: int,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rate` in requests a second for each host; 0: no limit."""
        self._rate = rate
        self._burst = burst
        self._limits = limits
        self._clock = clock
        self._backoff = Backoff(limits.attempt_backoff, limits.max_rate_pause)
        self._lock = threading.Lock()
        self._buckets: LRUCache[str, TokenBucket] = LRUCache(_MAX_KEPT)  # by host
        self._pauses: FIFOCache[tuple[str, str], _Pause] = FIFOCache(_MAX_KEPT)

    def reserve(self, host: str, fingerprint: str) -> float:
        """Reserve one request to the host. Returns the seconds to wait before it is sent.

        Raises SourceUnavailable (`RegistryUnavailable`) if the host's pause lasts longer than `limits.attempt_wait`.
        """
        with self._lock:
            now = self._clock()
            pause = self._pauses.get((host, fingerprint))
            left = pause.until - now if pause is not None else 0.0
            if left > self._limits.attempt_wait:
                raise SourceUnavailable(
                    f"{host} limits the rate of requests; requests to it are paused",
                    reason=Reason.REGISTRY_UNAVAILABLE,
                    retry_after=left,
                )
            return max(left, self._reserve(host))

    def answered(
        self, host: str, fingerprint: str, status: int, headers: Mapping[str, str]
    ) -> None:
        """Record a response: its status and `Retry-After`."""
        requested = retry_after(headers.get("Retry-After")) if status in (429, 503) else None
        with self._lock:
            key = (host, fingerprint)
            if status != 429 and requested is None:
                if status < 400:
                    self._pauses.pop(key, None)
                return
            pause = self._pauses.pop(key, None) or _Pause()
            pause.in_a_row += 1
            wait = self._backoff.delay(pause.in_a_row) if requested is None else requested
            pause.until = max(pause.until, self._clock() + wait)
            self._pauses[key] = pause

    def _reserve(self, host: str) -> float:
        if self._rate <= 0:
            return 0.0
        bucket = self._buckets.get(host)
        if bucket is None:
            bucket = TokenBucket(rate=self._rate, burst=self._burst, clock=self._clock)
            self._buckets[host] = bucket
        return bucket.reserve()
