"""Rendering in slices: the same text, and the loop runs meanwhile."""

import time
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from autowasm.server.admin import SLICE, render
from tests.hostile.looptime import longest_iteration

SERIES = 10_000
ENCODERS = (generate_latest, partial(openmetrics, version="1.0.0"))


def filled(series: int) -> CollectorRegistry:
    """Families of a hundred series, as our largest are."""
    registry = CollectorRegistry()
    for family in range(series // 100):
        gauge = Gauge(f"family_{family}", "Some.", ["number"], registry=registry)
        for number in range(100):
            gauge.labels(str(number)).set(number)
    return registry


async def test_text_equals_the_output_of_the_library() -> None:
    registry = filled(300)
    gauge = Gauge("wide", 'One with "quotes".', ["number"], registry=registry)
    for number in range(2 * SLICE + 1):
        gauge.labels(str(number)).set(number)
    Gauge("empty", "None.", ["number"], registry=registry)
    for encode in ENCODERS:
        parts = [part async for part in render(registry, encode)]
        assert b"".join(parts) == encode(registry)
        assert max(part.count(b"\n") for part in parts) <= SLICE + 2


async def test_exemplars_stay_and_times_of_creation_go() -> None:
    registry = CollectorRegistry()
    Counter("asked", "Some.", registry=registry).inc()
    Histogram("took_seconds", "Some.", registry=registry).observe(0.1, {"autowasm": "a/b"})
    text = b"".join([part async for part in render(registry, ENCODERS[1])]).decode()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    assert {one.exemplar.labels["autowasm"] for one in samples if one.exemplar} == {"a/b"}
    assert not any(one.name.endswith("_created") for one in samples)
    assert any(one.name == "asked_total" for one in samples)


async def test_ten_thousand_series_do_not_hold_the_loop() -> None:
    registry = filled(SERIES)
    size, whole = 0, 0.0

    async def scrape() -> None:
        nonlocal size, whole
        begun = time.thread_time()
        size = 0
        async for part in render(registry, ENCODERS[1]):
            size += part.count(b"\n")
        whole = time.thread_time() - begun

    longest = await longest_iteration(scrape, below=0.02)
    assert size >= SERIES
    assert longest < 0.02
    assert longest < whole / 5, "all at once, it would have been one iteration"
