"""What the metrics say of the informers: how much they hold, and how long the API server has been silent.

Not their lists and watches, which are counted where they end. Invariant: read when somebody asks; nothing is kept.
"""

from collections import defaultdict
from collections.abc import Iterable, Sized
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Followed(Protocol):
    """An informer, as far as metrics look at it."""

    @property
    def name(self) -> str:
        """Of the resource."""

    @property
    def store(self) -> Sized:
        """What it holds."""

    @property
    def last_event_age(self) -> float | None:
        """Seconds; None: not yet, or it does not run."""


class InformerMetrics(Collector):
    """All informers of the process; several of one resource (one for each namespace) count as one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._informers: tuple[Followed, ...] = ()
        registry.register(self)

    def follow(self, informers: Iterable[Followed]) -> None:
        """These are all."""
        self._informers = tuple(informers)

    def collect(self) -> Iterable[Metric]:
        """As of now."""
        objects = GaugeMetricFamily(
            "autowasm_informer_objects",
            "Objects in the stores, by resource; Pods on the leader only.",
            labels=["resource"],
        )
        ages = GaugeMetricFamily(
            "autowasm_informer_last_event_age_seconds",
            "Time since the API server last said anything, a bookmark at least, by resource that is being followed.",
            labels=["resource"],
        )
        counts: defaultdict[str, int] = defaultdict(int)
        oldest: dict[str, float] = {}
        for informer in self._informers:
            counts[informer.name] += len(informer.store)
            age = informer.last_event_age
            if age is not None:
                oldest[informer.name] = max(age, oldest.get(informer.name, 0.0))
        for name, count in counts.items():
            objects.add_metric([name], count)
        for name, age in oldest.items():
            ages.add_metric([name], age)
        return (objects, ages)
