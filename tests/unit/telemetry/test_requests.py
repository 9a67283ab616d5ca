"""Requests are counted by host, and hosts that tenants invent make no more series than there may be."""

from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry

from autowasm.telemetry.requests import NAMED, OTHER, RequestMetrics


def _count(registry: CollectorRegistry, host: str) -> float | None:
    return registry.get_sample_value("autowasm_source_requests_total", {"host": host})


def test_counts_requests_by_host_from_any_thread() -> None:
    registry = CollectorRegistry()
    requests = RequestMetrics(registry)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(requests.sent, ["one.example", "two.example:5000"] * 500))
    assert _count(registry, "one.example") == _count(registry, "two.example:5000") == 500


def test_hosts_beyond_the_most_are_others() -> None:
    registry = CollectorRegistry()
    requests = RequestMetrics(registry)
    for number in range(3 * NAMED):
        requests.sent(f"h{number}.example")
    requests.sent("h0.example")
    (family,) = registry.collect()
    hosts = {sample.labels["host"] for sample in family.samples if sample.name.endswith("_total")}
    assert len(hosts) == NAMED + 1
    assert _count(registry, OTHER) == 2 * NAMED
    assert _count(registry, "h0.example") == 2
