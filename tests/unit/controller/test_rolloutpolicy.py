"""The operator's default and minimum of staged rollouts."""

from typing import Any

import pytest

from autowasm.api.v1alpha1 import Rollout
from autowasm.controller.sourcepolicy import PolicyFile, SourcePolicy
from autowasm.errors import SpecError, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from tests.fakes.autowasms import autowasm


def policy(text: str) -> SourcePolicy:
    return SourcePolicy.parse(f"namespaces: {{'*': {text}}}".encode())


def made(text: str, rollout: Any = None) -> Rollout | None:
    """The rollout of an AutoWasm in a namespace with this rule."""
    with Pools() as pools:
        file = PolicyFile(None, limits=Limits(), pools=pools)
        file.policy = policy(text)
        spec = {"rollout": rollout} if rollout is not None else {}
        found = file.with_rollout(autowasm(spec=spec))
        file.check(found)
        return found.spec.rollout


def test_without_a_rule_nothing_is_rolled_out_in_steps() -> None:
    assert made("{}") is None
    assert made("{digestRequired: false}") is None


def test_default_is_for_autowasms_without_a_rollout() -> None:
    rule = "{rollout: {steps: [2], pause: 1m}}"
    assert made(rule) == Rollout(steps=(2,), pause="1m")
    assert made(rule, {"pause": "5s"}) == Rollout(pause="5s")


@pytest.mark.parametrize(
    ("minimum", "wanted"),
    [
        ("{}", Rollout()),
        ("{firstStep: 1}", Rollout()),
        ("{firstStep: '20%'}", Rollout(steps=("20%", "50%"))),
        ("{pause: 10s}", Rollout()),
        ("{pause: 5m, maxFailureRatio: 0.001}", Rollout(pause="5m", max_failure_ratio=0.001)),
    ],
)
def test_minimum_makes_every_change_a_careful_rollout(minimum: str, wanted: Rollout) -> None:
    assert made(f"{{minimumRollout: {minimum}}}") == wanted


@pytest.mark.parametrize(
    ("minimum", "rollout", "field"),
    [
        ("{firstStep: 2}", {"steps": [3]}, "steps"),
        ("{firstStep: '10%'}", {"steps": ["11%"]}, "steps"),
        ("{firstStep: '10%'}", {"steps": [2]}, "steps"),
        ("{firstStep: 2}", {"steps": ["1%"]}, "steps"),
        ("{pause: 30s}", {"pause": "29s"}, "pause"),
        ("{maxFailureRatio: 0.01}", {"maxFailureRatio": 0.02}, "maxFailureRatio"),
        ("{onUnknown: Wait}", {"onUnknown": "Continue"}, "onUnknown"),
    ],
)
def test_less_careful_rollout_is_denied(minimum: str, rollout: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError, match=rf"spec\.rollout\.{field}.*rule '\*'") as found:
        made(f"{{minimumRollout: {minimum}}}", rollout)
    assert found.value.reason == "PolicyDenied"


@pytest.mark.parametrize(
    ("minimum", "rollout"),
    [
        ("{firstStep: 2}", {"steps": [2, "50%"]}),
        ("{firstStep: '10%'}", {"steps": [1, "50%"]}),
        ("{firstStep: '10%'}", {"steps": ["10%"]}),
        ("{pause: 30s, maxFailureRatio: 0.01, onUnknown: Continue}", {"onUnknown": "Continue"}),
    ],
)
def test_careful_rollout_is_taken(minimum: str, rollout: dict[str, Any]) -> None:
    assert made(f"{{minimumRollout: {minimum}}}", rollout) is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{rollout: {steps: [0]}}", "a count must be from 1"),
        ("{rollout: {pause: soon}}", "not a duration"),
        ("{rollout: {step: [1]}}", "unknown field; did you mean steps?"),
        ("{minimumRollout: {firstStep: '0%'}}", "from 1% to 100%"),
        ("{minimumRollout: {pause: soon}}", "not a duration"),
        ("{minimumRollout: {pause: 1m}, rollout: {pause: 5s}}", "must be at least 1m, not 5s"),
    ],
)
def test_invalid_rule_ends_the_start(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        policy(text)
