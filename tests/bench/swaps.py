"""The duration and cost of module swaps: the arithmetic of the rows that compare with Istio's own WasmPlugin.

Invariant: a percentile is a measured value (nearest rank), and a sidecar that did not get the module in time counts as missing and
is in no percentile.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.table import Budget, Figure, at_most

OURS, THEIRS = "AutoWasm", "WasmPlugin"

_ACCESS = re.compile(r'"(?:GET|HEAD|POST|PUT|PATCH) \S+ HTTP/[\d.]+" \d{3} (\d+) "[^"]*" "([^"]*)"')
_CLIENT = "autowasm"
"""The name of wasmer as a client. Istio's agent has two: that of its HTTP library, and that of its registry library."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class Usage:
    """The answers of a registry: the number of requests, and the bytes of the bodies."""

    requests: int = 0
    size: int = 0


def usage(lines: Iterable[str], system: str) -> Usage:
    """Count the system's lines of distribution's access log (Apache's combined format), by the name of the client; other lines are left out.

    A download that an agent aborted is logged when the registry notices, which may be during the other system's next swap.
    """
    found = [match for line in lines if (match := _ACCESS.search(line))]
    own = [match for match in found if match[2].startswith(_CLIENT) == (system == OURS)]
    return Usage(len(own), sum(int(match[1]) for match in own))


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap of a module on all sidecars of a system."""

    took: Sequence[float]
    """Seconds from the apply to the first answer of the new module, for each sidecar that gave one in time."""
    missing: int
    """Sidecars without such an answer in time."""
    previous: float
    """Seconds from the apply to the last answer of the previous module, on any connection to any sidecar."""
    requests: int
    failed: int
    registry: Usage

    @property
    def last(self) -> float:
        """Seconds until the last sidecar that got the module."""
        return max(self.took, default=math.nan)


P50, P99, LAST = (
    "until a sidecar has it, p50",
    "until a sidecar has it, p99",
    "until the last sidecar has it",
)
PREVIOUS = "last answer of the previous module"
MISSING, FAILED, ALL = (
    "sidecars without it in time",
    "requests that failed",
    "requests to the sidecars",
)
PULLS, PULLED = "requests to the registry for a swap", "from the registry for a swap"


def figures(
    what: str, ours: Sequence[Swap], theirs: Sequence[Swap], *, within: float | None = None
) -> list[Figure]:
    """The lines of one cell. Both lists have the swaps in the order in which they alternated. `within`: the budget of our median, in seconds."""

    def line(
        name: str,
        unit: str,
        value: Callable[[Sequence[Swap]], Sequence[float]],
        budget: Budget | None = None,
    ) -> Figure:
        return Figure(f"{what}: {name}", unit, value(ours), THEIRS, value(theirs), budget)

    def of_all(share: float) -> Callable[[Sequence[Swap]], Sequence[float]]:
        def value(swaps: Sequence[Swap]) -> Sequence[float]:
            took = [one for swap in swaps for one in swap.took]
            return [percentile(took, share) if took else math.nan]

        return value

    def of_each(value: Callable[[Swap], float]) -> Callable[[Sequence[Swap]], Sequence[float]]:
        return lambda swaps: [value(swap) for swap in swaps]

    def total(value: Callable[[Swap], float]) -> Callable[[Sequence[Swap]], Sequence[float]]:
        return lambda swaps: [sum(value(swap) for swap in swaps)]

    def middle(value: Callable[[Swap], float]) -> Callable[[Sequence[Swap]], Sequence[float]]:
        return lambda swaps: [median(value(swap) for swap in swaps)]

    return [
        line(P50, "s", of_all(0.5), None if within is None else at_most(within)),
        line(P99, "s", of_all(0.99)),
        line(LAST, "s", of_each(lambda swap: swap.last)),
        line(PREVIOUS, "s", of_each(lambda swap: swap.previous)),
        line(MISSING, "", total(lambda swap: swap.missing), at_most(0)),
        line(FAILED, "", total(lambda swap: swap.failed), at_most(0)),
        line(ALL, "", total(lambda swap: swap.requests)),
        line(PULLS, "", middle(lambda swap: swap.registry.requests)),
        line(PULLED, "MB", middle(lambda swap: swap.registry.size / 1e6)),
    ]
