"""Findings about the Pods that have fetched the module."""

from typing import Any

import pytest

from autowasm.explain.checks import pods as load
from autowasm.explain.facts import Facts
from autowasm.explain.finding import Finding, Level
from tests.parts.explained import autowasm, facts, findings_of


def _missing(reason: str, name: str = "details-1") -> dict[str, str]:
    return {"namespace": "team", "name": name, "reason": reason, "message": f"words of {reason}"}


def _facts(pods: dict[str, Any] | None, *, generation: int = 1, **changes: Any) -> Facts:
    document = autowasm()
    if pods is not None:
        document["status"]["pods"] = pods
    document["status"]["conditions"].append(
        {"type": "Loaded", "status": "True", "reason": "Fetched", "observedGeneration": generation}
    )
    return facts(document, **changes)


def findings_of_load(given: Facts) -> dict[str, Finding]:
    return findings_of(load.loaded, given)


def test_load_check_is_ok_if_all_sidecars_fetched() -> None:
    found = findings_of_load(
        _facts({"matched": 2, "injected": 2, "fetched": 2, "time": "2026-01-01T00:00:00Z"})
    )
    assert set(found) == {"Loaded"}
    assert found["Loaded"].level is Level.OK
    assert found["Loaded"].what == "2 of 2 sidecars fetched the module (as of 2026-01-01T00:00:00Z)"


@pytest.mark.parametrize(
    ("reason", "level"),
    [
        ("Refused", Level.ERROR),
        ("NeverAsked", Level.WARNING),
        ("NotReady", Level.WARNING),
        ("Waiting", Level.NOTE),
        ("SharedAddress", Level.NOTE),
        ("Unattributed", Level.NOTE),
        ("NotKnown", Level.NOTE),
        ("OfTomorrow", Level.NOTE),
    ],
)
def test_only_known_faults_are_errors(reason: str, level: Level) -> None:
    given = _facts({"matched": 2, "injected": 2, "fetched": 1, "missing": [_missing(reason)]})
    finding = findings_of_load(given)[f"Load{reason}"]
    assert (finding.level, finding.object) == (level, "Pod team/details-1")
    assert finding.what == f"words of {reason}"


def test_pods_are_grouped_by_reason_and_those_that_the_status_does_not_name_are_counted() -> None:
    missing = [_missing("NeverAsked", f"p{number}") for number in range(10)]
    found = findings_of_load(
        _facts({"matched": 15, "injected": 15, "fetched": 1, "missing": missing})
    )
    assert found["LoadNeverAsked"].object == "Pods team/p0, team/p1, team/p2 and 7 more"
    assert found["Loaded"].what.endswith("; 4 more that did not are not listed in the status")


def test_load_check_does_not_list_pods_without_a_sidecar() -> None:
    given = _facts(
        {"matched": 1, "injected": 0, "fetched": 0, "missing": [_missing("NotInjected")]}
    )
    assert set(findings_of_load(given)) == {"Loaded"}


def test_message_about_an_earlier_spec_is_not_passed_on() -> None:
    given = _facts({"matched": 1, "injected": 1, "fetched": 1}, generation=0)
    assert set(findings_of_load(given)) == {"LoadNotTold"}


def test_status_without_the_fetched_count_is_a_finding() -> None:
    assert set(findings_of_load(_facts({"matched": 1, "injected": 1}))) == {"LoadNotTold"}


def test_load_check_has_no_finding_for_unmatched_or_unapplied_objects() -> None:
    counts = {"matched": 1, "injected": 1, "fetched": 1}
    assert findings_of_load(_facts(None)) == {}
    assert findings_of_load(_facts({"matched": 0, "injected": 0, "fetched": 0})) == {}
    assert findings_of_load(_facts(counts, planned=True)) == {}
