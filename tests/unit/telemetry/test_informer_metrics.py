"""Informers of one resource count as one."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from autowasm.telemetry.metrics import InformerMetrics


@dataclass
class Informer:
    name: str
    last_event_age: float | None
    store: list[int] = field(default_factory=lambda: [1, 2])


def test_sizes_add_up_and_the_longest_silence_counts() -> None:
    registry = CollectorRegistry()
    metrics = InformerMetrics(registry)
    metrics.follow([Informer("pods", 3.0), Informer("pods", 7.0), Informer("autowasms", None)])

    def value(name: str, resource: str) -> float | None:
        return registry.get_sample_value(f"autowasm_informer_{name}", {"resource": resource})

    assert (value("objects", "pods"), value("objects", "autowasms")) == (4, 2)
    assert value("last_event_age_seconds", "pods") == 7
    assert value("last_event_age_seconds", "autowasms") is None, "nobody listens"
