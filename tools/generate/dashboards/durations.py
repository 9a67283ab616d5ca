"""Durations of rules, which a test may shrink all together.

Not Prometheus' own arithmetic. Invariant: with scale 1 a duration is written as it was given.
"""

from dataclasses import dataclass

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Durations:
    """`scale` 1 for operators; a test that cannot wait for minutes takes less."""

    scale: float = 1.0
    least: float = 1.0
    """Seconds that a shrunken duration has at least: a window has to hold some scrapes."""

    def text(self, duration: str) -> str:
        """As Prometheus writes it."""
        return duration if self.scale == 1 else f"{round(self.seconds(duration) * 1000)}ms"

    def seconds(self, duration: str) -> float:
        """As a number to compare with."""
        whole = float(duration[:-1]) * _UNITS[duration[-1]]
        return whole if self.scale == 1 else max(whole * self.scale, self.least)
