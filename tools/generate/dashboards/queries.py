"""The elements of panels: queries, and short forms for them.

Not the panels (`panels.py`). Invariant: every query of a metric that each replica counts has the selector of the chosen replicas.
"""

from dataclasses import dataclass
from typing import Literal

S = 'instance=~"$replica"'
"""The selector of the chosen replicas."""
N = 'autowasm_namespace=~"$namespace"'
W = "$__rate_interval"


Steps = tuple[tuple[float | None, str], ...]
"""Colours by the value from which they apply; the first has no value and applies below the second."""


def low_is_bad(*, red_below: float, green_from: float) -> Steps:
    """Orange between the two."""
    middle = ((red_below, "orange"),) if red_below < green_from else ()
    return ((None, "red"), *middle, (green_from, "green"))


def high_is_bad(*, orange_from: float, red_from: float) -> Steps:
    """Green below both."""
    return ((None, "green"), (orange_from, "orange"), (red_from, "red"))


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and the names of its series."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """`width` in Grafana's 24 columns. `steps` colour a number, and draw a line in a graph. `alerts` are those with helpful runbooks."""

    title: str
    queries: tuple[Query, ...]
    description: str
    kind: Literal["graph", "number", "table"] = "graph"
    unit: str = "short"
    width: int = 8
    steps: Steps = ()
    alerts: tuple[str, ...] = ()


def rate(counter: str, by: str = "", selector: str = "") -> str:
    """Increase per second, summed over all chosen replicas, by labels."""
    inside = ", ".join(part for part in (S, selector) if part)
    return f"sum{f' by ({by}) ' if by else ''}(rate({counter}{{{inside}}}[{W}]))"


def quantile(share: float, histogram: str, by: str = "", selector: str = "") -> str:
    """The value that the `share` (0 to 1) of the observations does not exceed, by labels."""
    buckets = rate(f"{histogram}_bucket", ", ".join(filter(None, ("le", by))), selector)
    return f"histogram_quantile({share}, {buckets})"


def number(
    title: str,
    expression: str,
    description: str,
    unit: str = "short",
    *,
    steps: Steps = (),
    alerts: tuple[str, ...] = (),
) -> Panel:
    """A panel with one number."""
    return Panel(
        title,
        (Query(expression),),
        description,
        "number",
        unit,
        width=4,
        steps=steps,
        alerts=alerts,
    )


def graph(
    title: str,
    description: str,
    *queries: tuple[str, str],
    unit: str = "short",
    steps: Steps = (),
    alerts: tuple[str, ...] = (),
) -> Panel:
    """A panel with curves: expressions and their names."""
    curves = tuple(Query(*query) for query in queries)
    return Panel(title, curves, description, unit=unit, steps=steps, alerts=alerts)
