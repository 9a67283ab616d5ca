"""Verdicts in memory are bounded in number and bytes."""

from autowasm.digest import Sha256Hex
from autowasm.limits import PreflightLimits
from autowasm.preflight.verdicts import VerdictKey, Verdicts
from autowasm.sandbox.verdict import Outcome, Verdict

STARTS = Verdict(Outcome.STARTS)
REFUSED = Verdict(Outcome.REFUSED)


def key(request: int, *, sha256: str = "a" * 64, engine: str = "1") -> VerdictKey:
    return VerdictKey(Sha256Hex(sha256), str(request).encode(), engine)


def test_a_verdict_is_of_one_module_one_request_and_one_engine() -> None:
    verdicts = Verdicts(PreflightLimits())
    verdicts.put(key(1), STARTS, size=1)
    assert verdicts.get(key(1)) is STARTS
    assert verdicts.get(key(2)) is None
    assert verdicts.get(key(1, sha256="b" * 64)) is None
    assert verdicts.get(key(1, engine="2")) is None


def test_the_least_recently_used_verdict_is_dropped_first() -> None:
    verdicts = Verdicts(PreflightLimits(verdicts=2))
    verdicts.put(key(1), STARTS, size=1)
    verdicts.put(key(2), STARTS, size=1)
    assert verdicts.get(key(1))
    verdicts.put(key(3), STARTS, size=1)
    assert [verdicts.get(key(number)) for number in (1, 2, 3)] == [STARTS, None, STARTS]


def test_large_verdicts_leave_room_for_fewer() -> None:
    verdicts = Verdicts(PreflightLimits(verdict_bytes=100))
    for number in range(10):
        verdicts.put(key(number), STARTS, size=30)
    assert len(verdicts) == 3
    verdicts.put(key(9), REFUSED, size=95)
    assert len(verdicts) == 1
    assert verdicts.get(key(9)) is REFUSED
    verdicts.put(key(10), STARTS, size=101)
    assert len(verdicts) == 0
