"""What the metrics say of AutoWasms one by one: who is not Synced, and how old tags are.

Not their phases (`metrics.autowasms` counts those). Invariant: at most `NAMED` objects are named, those first that are not
Synced for the longest time; all others are only counted. Read when somebody asks, so a change costs a dictionary entry.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

NAMED: Final = 100
"""Objects that are not Synced and named; more would tell nobody more, and cost Prometheus a series each."""
TAG_AGES: Final = (60.0, 600.0, 3600.0, 86_400.0, 604_800.0, 2_592_000.0, 7_776_000.0)
"""Seconds: a minute to 90 days."""


@dataclass(frozen=True, slots=True)
class Unsynced:
    """An AutoWasm that is not Synced. `since`: seconds since the epoch."""

    phase: str
    reason: str
    since: float


class ObjectMetrics(Collector):
    """Told by whoever reconciles, by (namespace, name)."""

    def __init__(self, registry: CollectorRegistry, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._unsynced: dict[tuple[str, str], Unsynced] = {}
        self._resolved: dict[tuple[str, str], tuple[float, float]] = {}
        """When it was resolved as its status says, and when that was confirmed last."""
        registry.register(self)

    def synced(self, key: tuple[str, str]) -> None:
        """All is well with it."""
        self._unsynced.pop(key, None)

    def unsynced(self, key: tuple[str, str], *, phase: str, reason: str) -> None:
        """It is not Synced; how long it has been so goes on through other phases."""
        before = self._unsynced.get(key)
        since = before.since if before else self._now()
        self._unsynced[key] = Unsynced(phase, reason, since)

    def resolved(self, key: tuple[str, str], at: float | None) -> None:
        """Its source, which names no digest, was last resolved then (seconds since the epoch); None: there is no such source."""
        if at is None:
            self._resolved.pop(key, None)
        elif key not in self._resolved or self._resolved[key][0] != at:
            self._resolved[key] = (at, at)

    def confirmed(self, key: tuple[str, str], at: float) -> None:
        """Its source was asked then and names the same still. Holds until it is resolved anew."""
        if key in self._resolved:
            self._resolved[key] = (self._resolved[key][0], at)

    def forget(self, key: tuple[str, str]) -> None:
        """It is gone."""
        self._unsynced.pop(key, None)
        self._resolved.pop(key, None)

    def describe(self) -> Iterable[Metric]:
        """The families, empty."""
        return (self._named([]), self._tag_ages([]))

    def collect(self) -> Iterable[Metric]:
        """As of now."""
        longest = sorted(self._unsynced.items(), key=lambda item: (item[1].since, item[0]))
        now = self._now()
        ages = [max(now - at, 0.0) for _, at in self._resolved.values()]
        return (self._named(longest[:NAMED]), self._tag_ages(ages))

    @staticmethod
    def _named(objects: list[tuple[tuple[str, str], Unsynced]]) -> Metric:
        family = GaugeMetricFamily(
            "autowasm_not_synced_since_timestamp_seconds",
            f"AutoWasms that are not Synced, by name, and since when (at most {NAMED}, the longest first).",
            labels=[
                "autowasm_namespace",
                "autowasm",
                "phase",
                "reason",
            ],  # `namespace` is the scraped Pod's
        )
        for (namespace, name), state in objects:
            family.add_metric([namespace, name, state.phase, state.reason], state.since)
        return family

    @staticmethod
    def _tag_ages(ages: list[float]) -> Metric:
        counts = [0] * (len(TAG_AGES) + 1)
        for age in ages:
            counts[bisect_left(TAG_AGES, age)] += 1
        bounds = [*map(str, TAG_AGES), "+Inf"]
        return GaugeHistogramMetricFamily(
            "autowasm_tag_age_seconds",
            "How long ago the sources that name no digest were resolved to the module in use: AutoWasms by age.",
            buckets=list(zip(bounds, accumulate(counts), strict=True)),
            gsum_value=sum(ages),
        )
