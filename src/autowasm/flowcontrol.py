"""Pacing as in client-go's util/flowcontrol: Backoff after failures, and TokenBucket for rates.

Backoff: exponential, with a cap and jitter; pure arithmetic. Invariant: no delay exceeds `maximum × (1 + jitter)`.

TokenBucket: at most `burst` events at once, and `rate` a second on average; a small version of golang.org/x/time/rate. Own code, because the
libraries do not fit: aiolimiter only waits, and only on the event loop; limits uses the time of day; pyrate-limiter has
no reservations, and counts in whole milliseconds. The buckets of registries are used in threads, those of Events on virtual
time in tests.

Invariant of both: nothing here waits. The caller is refused, or gets the time to wait before it acts.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays of `base × 2^n` seconds up to `maximum`, each longer by a random part of at most `jitter` × itself."""

    base: float
    maximum: float
    jitter: float = 0.1

    def delay(self, failures: int, *, rng: random.Random | None = None) -> float:
        """Seconds to wait after `failures` failures in a row (1 is the first)."""
        exponent = min(max(failures - 1, 0), 60)  # 2^60 s exceeds every cap; larger only overflows
        plain: float = min(self.base * 2.0**exponent, self.maximum)
        share = (rng or random).random()
        return plain * (1.0 + self.jitter * share)


class TokenBucket:
    """Full at first. Not thread-safe. `rate` in tokens a second, above 0; `clock` in seconds, monotonic."""

    __slots__ = ("_at", "_burst", "_clock", "_rate", "_tokens")

    def __init__(
        self, *, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        """A negative number counts reserved tokens."""
        self._at = clock()

    def try_acquire(self) -> bool:
        """Take a token if one is available now."""
        self._refill()
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def reserve(self) -> float:
        """Take a token in any case. Returns the seconds until it is available to the caller; 0 means now."""
        self._refill()
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self._rate)

    def cancel_waits(self) -> None:
        """Cancel the waits of callers that did not wait, so that later callers need not wait for them."""
        self._refill()
        self._tokens = max(self._tokens, 0.0)

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
