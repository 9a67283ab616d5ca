from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from autowasm.telemetry.metrics import Metrics
from tools.generate.pages import metrics as pages

BOUNDED = {
    "kind", "stage", "outcome", "reason", "method", "status", "cause", "phase", "resource", "result", "state", "le", "work",
}  # fmt: skip
NAMES = {"autowasm_namespace", "autowasm"}


def test_names_have_our_prefix_and_base_units(metrics: Metrics) -> None:
    for family in metrics.registry.collect():
        assert family.name.startswith("autowasm_")
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_milliseconds", "_kb", "_mb"))
        assert family.type != "histogram" or family.name.endswith("_seconds")


def test_labels_are_bounded() -> None:
    """Never a digest or a Pod; names only where they are counted (test_objects.py, net/test_namedhosts.py)."""
    labels = {row.name: set(row.labels) for row in pages.rows()}
    assert labels.pop("autowasm_not_synced_since_timestamp_seconds") - BOUNDED == NAMES
    waiting = labels.pop("autowasm_staged_rollout_waiting_since_timestamp_seconds")
    assert waiting - BOUNDED == NAMES
    assert labels.pop("autowasm_source_requests_total") == {"host"}
    assert labels.pop("autowasm_build_info") == {"version", "python"}
    assert set().union(*labels.values()) <= BOUNDED


def test_two_processes_do_not_share_collectors() -> None:
    one, other = Metrics(), Metrics()
    one.fetches.labels("registry", "Success").inc()
    name, labels = "autowasm_fetches_total", {"kind": "registry", "reason": "Success"}
    assert one.registry.get_sample_value(name, labels) == 1
    assert other.registry.get_sample_value(name, labels) is None


def test_registry_may_be_given() -> None:
    registry = CollectorRegistry()
    assert Metrics(registry).registry is registry


def test_both_expositions_are_well_formed(metrics: Metrics) -> None:
    metrics.fetches.labels("registry", 'odd "reason"\n').inc()
    metrics.reflector("pods").watch_ended("timeout")
    assert b"autowasm_fetches_total" in generate_latest(metrics.registry)
    text = generate_openmetrics(metrics.registry).decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"autowasm_fetches", "autowasm_reflector_watches"} <= names
