"""The check of the start: from the condition of a live object, and from this machine for a planned one."""

import pytest

from autowasm.explain.checks import source
from autowasm.explain.facts import Facts, StartFact
from autowasm.explain.finding import Level, Step
from autowasm.kube.resources import ObjectKey

KEY = ObjectKey("shop", "gate")


def facts(status: str, reason: str, *, planned: bool = False) -> Facts:
    fact = StartFact(status=status, reason=reason, message="it says so", command="wasmc run -f a")
    return Facts(key=KEY, document={}, planned=planned, start=fact)


def test_nothing_is_said_without_a_verdict() -> None:
    assert not list(source.starts(Facts(key=KEY, document={})))


@pytest.mark.parametrize(
    ("status", "reason", "level"),
    [
        ("True", "Started", Level.OK),
        ("False", "ConfigurationRefused", Level.ERROR),
        ("False", "StartFailed", Level.ERROR),
        ("Unknown", "CalloutNeeded", Level.WARNING),
        ("Unknown", "OfANewerVersion", Level.WARNING),
    ],
)
def test_verdict_is_a_finding_with_a_command(status: str, reason: str, level: Level) -> None:
    (finding,) = source.starts(facts(status, reason))
    assert (finding.level, finding.step, finding.check) == (level, Step.MODULE, "Starts")
    assert finding.field == "status.conditions[Starts]"
    if level is Level.OK:
        assert (finding.what, finding.remedy) == ("it says so", "")
    else:
        assert finding.what == f"{reason}: it says so"
        assert finding.remedy.endswith("; to reproduce: wasmc run -f a")


def test_planned_verdict_is_of_no_field() -> None:
    (finding,) = source.starts(facts("False", "StartFailed", planned=True))
    assert finding.field == ""
