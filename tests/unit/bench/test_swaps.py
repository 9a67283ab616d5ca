"""The arithmetic of swaps: percentiles, counts, and what a registry's access log says."""

import math

import pytest

from tests.bench.swaps import OURS, THEIRS, Swap, Usage, figures, percentile, usage
from tests.bench.table import Figure

LOG = """\
127.0.0.1 - - [28/Nov/2026:08:00:00 +0000] "GET /v2/ HTTP/1.1" 401 87 "" "Go-http-client/1.1"
time="2026-11-28T08:00:00Z" level=info msg="response completed" http.response.written=1000
127.0.0.1 - alice [28/Nov/2026:08:00:00 +0000] "GET /v2/f/manifests/v1 HTTP/1.1" 200 600 "" "go-containerregistry/v0.21"
127.0.0.1 - alice [28/Nov/2026:08:00:01 +0000] "HEAD /v2/f/manifests/v2 HTTP/1.1" 200 410 "" "autowasm"
127.0.0.1 - alice [28/Nov/2026:08:00:01 +0000] "GET /v2/f/blobs/sha256:00 HTTP/1.1" 200 1000000 "" "autowasm"
"""


def swap(*took: float, missing: int = 0, failed: int = 0, size: int = 0) -> Swap:
    return Swap(took, missing, 0.0, 100, failed, Usage(3, size))


def by_name(found: list[Figure]) -> dict[str, Figure]:
    return {one.name.partition(": ")[2]: one for one in found}


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(one) for one in range(1, 201)]
    assert percentile(values, 0.5) == 100.0
    assert percentile(values, 0.99) == 198.0
    assert percentile([5.0, 1.0, 3.0], 0.5) == 3.0
    assert percentile([7.0], 0.99) == 7.0


def test_p99_of_thirty_is_the_largest() -> None:
    assert percentile([1.0] * 29 + [9.0], 0.99) == 9.0


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_usage_counts_requests_and_bodies_of_one_system_and_no_other_line() -> None:
    assert usage(LOG.splitlines(), THEIRS) == Usage(2, 687)
    assert usage(LOG.splitlines(), OURS) == Usage(2, 1_000_410)


def test_percentiles_are_of_all_sidecars_of_all_swaps() -> None:
    found = by_name(figures("2", [swap(1, 2), swap(3, 4)], [swap(2, 2), swap(2, 2)]))
    assert found["until a sidecar has it, p50"].ours == [2]
    assert found["until a sidecar has it, p99"].ours == [4]
    assert found["until a sidecar has it, p99"].theirs == [2]


def test_ratio_of_the_last_sidecar_is_of_swaps_that_followed_each_other() -> None:
    found = by_name(figures("2", [swap(1, 2), swap(3, 8)], [swap(1, 4), swap(1, 16)]))
    assert found["until the last sidecar has it"].ratios == [0.5, 0.5]


def test_failed_requests_and_missing_sidecars_are_added_up() -> None:
    theirs = [swap(1, missing=2, failed=5), swap(1, missing=1, failed=7)]
    found = by_name(figures("3", [swap(1), swap(1)], theirs))
    assert found["sidecars without it in time"].theirs == [3]
    assert found["requests that failed"].theirs == [12]
    assert found["requests that failed"].ours == [0]
    assert found["requests that failed"].verdict == "met"
    assert found["requests to the sidecars"].theirs == [200]


def test_swap_that_reached_no_sidecar_has_no_time() -> None:
    found = by_name(figures("1", [swap(1)], [swap(missing=1)]))
    assert math.isnan(found["until a sidecar has it, p50"].theirs[0])
    assert math.isnan(found["until the last sidecar has it"].theirs[0])


def test_registry_is_used_by_the_median_of_swaps() -> None:
    ours = [swap(1, size=1_000_000), swap(1, size=3_000_000), swap(1, size=2_000_000)]
    found = by_name(figures("1", ours, ours))
    assert found["from the registry for a swap"].ours == [2.0]
    assert found["requests to the registry for a swap"].ours == [3]
