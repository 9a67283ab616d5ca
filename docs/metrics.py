"""Writes docs/metrics.md from the collectors: `make reference`. A test keeps it true."""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import Metric

from autowasm.telemetry.metrics import Metrics

_INTRODUCTION = """\
# Metrics

`GET /metrics` on the admin port (8080), as text or OpenMetrics, whichever is asked for; OpenMetrics has exemplars that name
the AutoWasm of a slow fetch. Every replica tells of itself; what is counted of AutoWasms every replica counts, so take `max`
of these and `sum` of the others. Beside these there are `process_*` and `python_gc_*`. Labels are bounded, and tenants do not
write their values: no digest and no Pod; a host only as the operator's flags and policy file name it, or if it is a well-known
public registry. The exception are names of AutoWasms that are not Synced, at most a hundred. What to make of them:
[operations](operations.md).
This page is made by `make reference`.
"""

_ROOMS = {
    "Getting modules": ("fetch", "circuit_breakers", "peer", "tag", "source", "polls"),
    "Serving them": ("blob_cache", "blob_responses", "blob_served", "blob_sends", "blob_requests"),
    "Keeping them": ("blob", "storage"),
    "AutoWasms": (
        "autowasms",
        "not_synced",
        "resends",
        "rollout",
        "reconcile",
        "workqueue",
        "unexpected",
    ),
    "The API server": ("leader", "informer", "reflector", "events", "service"),
    "The process": ("",),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def rows() -> Iterator[Row]:
    """All that there are."""
    for collector in Metrics().registry._collector_to_names:
        for metric in collector.collect():
            known = getattr(collector, "_labelnames", ()) or getattr(metric, "_labelnames", ())
            if metric.type == "info":
                known = tuple(metric.samples[0].labels)
            yield Row(_name(metric), metric.type, tuple(known), metric.documentation)


def _name(metric: Metric) -> str:
    return metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")


def _room(row: Row) -> str:
    name = row.name.removeprefix("autowasm_")
    return next(room for room, prefixes in _ROOMS.items() if name.startswith(prefixes))


def render() -> str:
    """The whole page."""
    found = sorted(rows(), key=lambda row: row.name)
    parts = [_INTRODUCTION]
    for room in _ROOMS:
        lines = [f"## {room}\n", "| metric | type | labels | meaning |", "|---|---|---|---|"]
        for row in found:
            if _room(row) == room:
                labels = ", ".join(f"`{label}`" for label in row.labels)
                lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.meaning} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
