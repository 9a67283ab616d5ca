"""CircuitBreakers: requests to a source pause after repeated failures (ADR 11).

The retry of one AutoWasm is in the work queue. Invariant: keys are (host, repository, credential), so one tenant's bad
secret or dead registry never stops another tenant's fetch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import FIFOCache

from autowasm.artifacts.source import SourceKey
from autowasm.errors import AutoWasmError, SourceDenied, SourceUnavailable
from autowasm.limits import FetchLimits
from autowasm.reasons import Reason
from autowasm.telemetry.metrics import Metrics

_MAX_KEPT = 10_000
"""Keys remembered; beyond it the oldest are dropped. Source keys come from specs, so tenants control their number."""


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    open_until: float = 0.0
    last: str = ""


class CircuitBreakers:
    """State of each source key. `clock` in seconds, monotonic."""

    def __init__(
        self, limits: FetchLimits, *, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._states: FIFOCache[SourceKey, _Circuit] = FIFOCache(_MAX_KEPT)
        metrics.circuit_breakers_open.set_function(self._count_open)  # breakers close by time alone

    def check(self, key: SourceKey) -> None:
        """Raises SourceUnavailable (`BackingOff`) while the key's breaker is open."""
        state = self._states.get(key)
        left = state.open_until - self._clock() if state else 0.0
        if state is not None and left > 0:
            where = f"{key.host}/{key.repository}".rstrip("/")
            # The message has no remaining time: it is part of a status, which would change with it.
            raise SourceUnavailable(
                f"{where}: requests are paused after failures; last failure: {state.last}",
                reason=Reason.BACKING_OFF,
                retry_after=left,
            )

    def succeeded(self, key: SourceKey) -> None:
        """The source answered: reset its failures."""
        self._states.pop(key, None)

    def failed(self, key: SourceKey, error: AutoWasmError) -> None:
        """Count a failure of the source. A missing image or rejected content is not one."""
        if not isinstance(error, SourceUnavailable | SourceDenied):
            return
        state = self._states.pop(key, None) or _Circuit()
        state.failures += 1
        state.last = str(error)
        wait = getattr(error, "retry_after", None) or 0.0
        if state.failures >= self._limits.breaker_failures:
            wait = max(wait, self._limits.breaker_open)
        state.open_until = self._clock() + min(wait, self._limits.retry_maximum)
        self._states[key] = state

    def _count_open(self) -> float:
        now = self._clock()
        return float(sum(state.open_until > now for state in self._states.values()))
