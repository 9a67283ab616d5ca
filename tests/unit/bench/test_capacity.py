import math
from dataclasses import replace

import pytest

from tests.bench.capacity import GBIT, MB, Rollout, replicas_needed, simulate

ALONE = Rollout(pods=1_000, module=2 * MB, replicas=1, chains=1, network=10 * GBIT)


def test_a_herd_takes_as_long_as_its_bytes() -> None:
    found = simulate(ALONE)
    assert found.seconds == pytest.approx(1_000 * 2 * MB / (10 * GBIT))
    assert (found.retried, found.lost, found.concurrent) == (0, 0, 1_000)


def test_downloads_in_sequence_do_not_share_bandwidth() -> None:
    found = simulate(replace(ALONE, spread=1_000.0))
    assert found.concurrent == 1
    assert found.seconds == pytest.approx(999.0 + 2 * MB / (10 * GBIT))


def test_small_modules_are_bound_by_the_processor() -> None:
    small = replace(ALONE, module=0.1 * MB)
    assert small.limit == "processor"
    assert simulate(small).seconds > 1_000 * 0.1 * MB / small.network


def test_equal_shares_beyond_the_timeout_lose_everything_however_often_it_is_tried() -> None:
    found = simulate(replace(ALONE, pods=4_000, network=2 * GBIT, timeout=1.0))
    assert found.lost > 3_000
    assert found.retried > 30_000


def test_back_off_prevents_losses_under_slight_overload() -> None:
    found = simulate(replace(ALONE, timeout=0.5))
    assert found.lost == 0
    assert found.retried > 0


def test_a_longer_timeout_loses_no_download() -> None:
    found = simulate(replace(ALONE, timeout=2.0))
    assert found.lost == found.retried == 0


def test_no_download_arrives_with_a_tiny_timeout() -> None:
    found = simulate(replace(ALONE, timeout=1e-6, retries=0))
    assert found.lost == 1_000
    assert found.seconds == math.inf


@pytest.mark.parametrize("pods", [1_000, 10_000, 100_000, 1_000_000])
def test_replicas_needed_are_enough_and_not_twice_too_many(pods: int) -> None:
    plan = Rollout(pods, 2 * MB)
    needed = replicas_needed(plan, within=15.0)
    assert simulate(replace(plan, replicas=needed)).seconds <= 15.0 * 1.001
    if needed > 2:
        assert simulate(replace(plan, replicas=needed // 2)).seconds > 15.0


def test_same_seed_same_answer() -> None:
    plan = replace(ALONE, timeout=1.5)
    assert simulate(plan) == simulate(plan)
