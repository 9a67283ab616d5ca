"""Metrics of objects that are not Synced, and of the age of tags."""

from prometheus_client import CollectorRegistry

from autowasm.telemetry.metrics import NAMED, ObjectMetrics
from tests.fakes.clocks import FakeClock

SINCE = "autowasm_not_synced_since_timestamp_seconds"


def labels(name: str, phase: str, reason: str = "SourceNotFound") -> dict[str, str]:
    return {"autowasm_namespace": "default", "autowasm": name, "phase": phase, "reason": reason}


def test_time_goes_on_through_phases_and_ends_when_synced() -> None:
    registry, clock = CollectorRegistry(), FakeClock()
    objects = ObjectMetrics(registry, clock)
    objects.unsynced(("default", "a"), phase="Fetching", reason="")
    clock.now = 1100.0
    objects.unsynced(("default", "a"), phase="Failed", reason="SourceNotFound")
    assert registry.get_sample_value(SINCE, labels("a", "Failed")) == 1000
    assert registry.get_sample_value(SINCE, labels("a", "Fetching", "")) is None
    objects.synced(("default", "a"))
    assert registry.get_sample_value(SINCE, labels("a", "Failed")) is None


def test_names_are_bounded_and_the_longest_unsynced_come_first() -> None:
    registry, clock = CollectorRegistry(), FakeClock()
    objects = ObjectMetrics(registry, clock)
    for number in reversed(range(3 * NAMED)):
        clock.now = 1000.0 + number
        objects.unsynced(("default", f"n{number}"), phase="Failed", reason="SourceNotFound")
    family = next(family for family in registry.collect() if family.name == SINCE)
    assert len(family.samples) == NAMED
    assert {sample.labels["autowasm"] for sample in family.samples} == {
        f"n{n}" for n in range(NAMED)
    }


def test_tags_are_counted_by_age() -> None:
    registry, clock = CollectorRegistry(), FakeClock()
    objects = ObjectMetrics(registry, clock)
    clock.now = 10_000.0
    objects.resolved(("default", "young"), 9_990.0)
    objects.resolved(("default", "old"), 5_000.0)
    objects.resolved(("default", "pinned"), 1.0)
    objects.resolved(("default", "pinned"), None)
    objects.resolved(("default", "gone"), 1.0)
    objects.forget(("default", "gone"))

    def count(bound: str) -> float | None:
        return registry.get_sample_value("autowasm_tag_age_seconds_bucket", {"le": bound})

    assert (count("60.0"), count("3600.0"), count("86400.0"), count("+Inf")) == (1, 1, 2, 2)
    assert registry.get_sample_value("autowasm_tag_age_seconds_gsum") == 5_010


def test_a_confirmed_tag_is_young_until_it_is_resolved_anew() -> None:
    registry, clock = CollectorRegistry(), FakeClock()
    objects = ObjectMetrics(registry, clock)
    clock.now = 10_000.0
    place = ("default", "test")

    def age() -> float | None:
        return registry.get_sample_value("autowasm_tag_age_seconds_gsum")

    objects.confirmed(place, 9_000.0)
    assert age() == 0, "it names a digest"
    objects.resolved(place, 1_000.0)
    objects.confirmed(place, 9_000.0)
    objects.resolved(place, 1_000.0)  # a reconcile reads the status again
    assert age() == 1_000
    objects.resolved(place, 500.0)  # back to an earlier source
    assert age() == 9_500
