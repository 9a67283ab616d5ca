"""CircuitBreakers: a source that fails again and again is left alone for a while (ADR 11).

Not the retry of one AutoWasm, which the work queue does. Invariant: keys are (host, repository, credential), so one
tenant's bad secret or dead registry never stops another's fetch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from autowasm.artifacts.source import SourceKey
from autowasm.errors import AutoWasmError, SourceDenied, SourceUnavailable
from autowasm.limits import FetchLimits
from autowasm.telemetry.metrics import Metrics

_MAX_KEPT = 10_000
"""Keys remembered; beyond it the oldest go. Source keys come from specs, so their number is the tenants' choice."""


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
        self._states: dict[SourceKey, _Circuit] = {}
        metrics.circuit_breakers_open.set_function(
            self._count_open
        )  # they close by themselves, as time passes

    def check(self, key: SourceKey) -> None:
        """Raises SourceUnavailable (`BackingOff`) while the key is left alone."""
        state = self._states.get(key)
        left = state.open_until - self._clock() if state else 0.0
        if state is not None and left > 0:
            where = f"{key.host}/{key.repository}".rstrip("/")
            # No numbers that change by themselves: the message goes into statuses, which would change with them.
            raise SourceUnavailable(
                f"{where} has failed and is left alone for a while; last failure: {state.last}",
                reason="BackingOff",
                retry_after=left,
            )

    def succeeded(self, key: SourceKey) -> None:
        """The source answered: forget its failures."""
        self._states.pop(key, None)

    def failed(self, key: SourceKey, error: AutoWasmError) -> None:
        """Count a failure of the source itself. A missing image or bad content says nothing about the source."""
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
        if len(self._states) > _MAX_KEPT:
            del self._states[next(iter(self._states))]

    def _count_open(self) -> float:
        now = self._clock()
        return float(sum(state.open_until > now for state in self._states.values()))
