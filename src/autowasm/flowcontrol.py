"""Exponential backoff with a cap and jitter: pure arithmetic.

The caller waits; nothing here sleeps or counts. Invariant: no delay exceeds `maximum × (1 + jitter)`.
"""

import random
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
