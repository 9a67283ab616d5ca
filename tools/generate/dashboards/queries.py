"""What panels are made of: queries, and short ways to write them.

Not the panels (`panels.py`). Invariant: the selector of the chosen replicas is in every query of what replicas count for themselves.
"""

from dataclasses import dataclass
from typing import Literal

S = 'instance=~"$replica"'
"""Of the replicas chosen."""
N = 'autowasm_namespace=~"$namespace"'
W = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and how its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """`width` in Grafana's 24 columns."""

    title: str
    queries: tuple[Query, ...]
    description: str
    kind: Literal["graph", "number", "table"] = "graph"
    unit: str = "short"
    width: int = 8


def rate(counter: str, by: str = "", selector: str = "") -> str:
    """Growth a second, of all chosen replicas together, by labels."""
    inside = ", ".join(part for part in (S, selector) if part)
    return f"sum{f' by ({by}) ' if by else ''}(rate({counter}{{{inside}}}[{W}]))"


def quantile(share: float, histogram: str, by: str = "", selector: str = "") -> str:
    """The `share` of observations (0 to 1) is at most this, by labels."""
    buckets = rate(f"{histogram}_bucket", ", ".join(filter(None, ("le", by))), selector)
    return f"histogram_quantile({share}, {buckets})"


def number(title: str, expression: str, description: str, unit: str = "short") -> Panel:
    """A panel with one number."""
    return Panel(title, (Query(expression),), description, kind="number", unit=unit, width=4)


def graph(title: str, description: str, *queries: tuple[str, str], unit: str = "short") -> Panel:
    """A panel with curves: expressions and how they are called."""
    return Panel(title, tuple(Query(*query) for query in queries), description, unit=unit)
