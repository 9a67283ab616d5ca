"""Requests are counted from any thread, without a loss."""

from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry

from autowasm.telemetry.metrics import RequestMetrics


def _count(registry: CollectorRegistry, host: str) -> float | None:
    return registry.get_sample_value("autowasm_source_requests_total", {"host": host})


def test_counts_requests_by_host_from_any_thread() -> None:
    registry = CollectorRegistry()
    requests = RequestMetrics(registry)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(requests.sent, ["one.example", "two.example:5000"] * 500))
    assert _count(registry, "one.example") == _count(registry, "two.example:5000") == 500
