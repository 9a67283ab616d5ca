from autowasm.blobs.eviction import EvictionCandidate, choose, expired
from tests.fakes.autowasms import digest


def candidate(
    name: str, *, size: int = 10, used: float = 0.0, kept: bool = False
) -> EvictionCandidate:
    return EvictionCandidate(digest(name), size, used, kept)


def test_evicts_the_longest_unused_first_and_history_last() -> None:
    old_kept = candidate("k", used=1, kept=True)
    old, young = candidate("o", used=2), candidate("y", used=3)
    assert choose([young, old_kept, old], 1) == [old]
    assert choose([young, old_kept, old], 20) == [old, young]
    assert choose([young, old_kept, old], 21) == [old, young, old_kept]


def test_nothing_is_evicted_if_it_would_not_suffice_or_is_not_needed() -> None:
    assert choose([candidate("a"), candidate("b")], 21) == []
    assert choose([candidate("a")], 0) == []
    assert choose([], 1) == []


def test_a_history_outlives_the_grace_period() -> None:
    old = candidate("o", used=1)
    assert expired([old, candidate("k", used=1, kept=True), candidate("y", used=3)], before=2) == [
        old
    ]
