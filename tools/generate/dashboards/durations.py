"""Durations of rules, which a test may shorten together.

Not Prometheus' own arithmetic. Invariant: with scale 1 a duration is written as it was given.
"""

from dataclasses import dataclass

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Durations:
    """`scale` is 1 for operators; a test that cannot wait for minutes uses a smaller one."""

    scale: float = 1.0
    least: float = 1.0
    """Minimum seconds of a shortened duration: a window must contain some scrapes."""

    def text(self, duration: str) -> str:
        """The duration in Prometheus' notation."""
        return duration if self.scale == 1 else f"{round(self.seconds(duration) * 1000)}ms"

    def seconds(self, duration: str) -> float:
        """The duration as a number for comparisons."""
        whole = float(duration[:-1]) * _UNITS[duration[-1]]
        return whole if self.scale == 1 else max(whole * self.scale, self.least)
