"""Findings about the Pods in whose sidecar the module runs."""

from typing import Any

import pytest

from autowasm.explain.checks import running
from autowasm.explain.facts import Facts, RunFact
from autowasm.explain.finding import Finding, Level
from tests.parts.explained import autowasm, facts, findings_of, pod


def _facts(
    *others: tuple[str, str],
    running: int | None = 1,
    generation: int = 1,
    runs: tuple[RunFact, ...] = (),
    **changes: Any,
) -> Facts:
    """`others`: name and reason of the Pods that the status names."""
    document = autowasm()
    named = [
        {"namespace": "team", "name": name, "reason": reason, "message": f"words of {reason}"}
        for name, reason in others
    ]
    if running is not None:
        injected = running + len(named)
        document["status"]["pods"] = {
            "matched": injected,
            "injected": injected,
            "running": running,
            "notRunning": named,
            "time": "2026-01-01T00:00:00Z",
        }
    document["status"]["conditions"].append(
        {
            "type": "Running",
            "status": "False" if named else "True",
            "reason": "X",
            "observedGeneration": generation,
        }
    )
    return facts(document, runs=runs, **changes)


def _run(name: str, state: str) -> RunFact:
    return RunFact(pod=f"team/{name}", state=state, message=f"fresh words of {state}")


def found(given: Facts) -> dict[str, Finding]:
    return findings_of(running.running, given)


def test_module_that_runs_everywhere_is_right() -> None:
    (finding,) = found(_facts(running=2)).values()
    assert finding.level is Level.OK
    assert finding.what == (
        "2 of 2 sidecars are known to run the module (as of 2026-01-01T00:00:00Z)"
    )


@pytest.mark.parametrize(
    ("state", "level"),
    [
        ("ConfigurationRefused", Level.ERROR),
        ("Crashing", Level.ERROR),
        ("FetchFailed", Level.ERROR),
        ("NotAccepted", Level.WARNING),
        ("StatsUnreachable", Level.NOTE),
        ("Unknown", Level.NOTE),
        ("Starting", Level.NOTE),
        ("OfTomorrow", Level.NOTE),
    ],
)
def test_only_known_faults_are_errors(state: str, level: Level) -> None:
    given = found(_facts(("details-1", state)))
    finding = given[f"Run{state}"]
    assert (finding.level, finding.object, finding.what) == (
        level,
        "Pod team/details-1",
        f"words of {state}",
    )
    assert given["Running"].level is Level.NOTE


def test_statistics_that_cannot_be_read_name_the_port_to_allow() -> None:
    assert found(_facts(("details-1", "StatsUnreachable")))["RunStatsUnreachable"].remedy == (
        "allow wasmer to connect to port 15090 of the Pods, if a NetworkPolicy forbids it; the module may run"
    )


def test_pods_with_the_same_state_are_one_finding() -> None:
    given = found(_facts(*((f"details-{n}", "Crashing") for n in range(5))))
    assert given["RunCrashing"].object == (
        "Pods team/details-0, team/details-1, team/details-2 and 2 more"
    )


def test_statistics_that_were_read_now_count_more_than_the_status() -> None:
    given = found(
        _facts(
            ("a", "Crashing"),
            ("b", "NotAccepted"),
            runs=(_run("a", "Running"), _run("c", "Crashing")),
        )
    )
    assert given["Running"].what == "1 of 2 sidecars whose statistics were read now run the module"
    assert given["RunCrashing"].object == "Pod team/c"
    assert given["RunCrashing"].what == "fresh words of Crashing"
    assert given["RunNotAccepted"].object == "Pod team/b", "it was not read"


def test_inconclusive_reading_keeps_the_run_state_of_the_status() -> None:
    given = found(_facts(("a", "Crashing"), runs=(_run("a", "Unknown"), _run("b", "Unknown"))))
    assert given["RunCrashing"].what == "words of Crashing"
    assert "RunUnknown" not in given


@pytest.mark.parametrize("old", [{"running": None}, {"generation": 0}])
def test_status_without_or_of_an_older_spec_is_no_statement(old: dict[str, Any]) -> None:
    assert set(found(_facts(**old))) == {"RunNotTold"}
    given = found(_facts(runs=(_run("a", "Unknown"),), **old))
    assert set(given) == {"Running", "RunUnknown"}, "better than nothing"


def test_nothing_is_said_without_a_sidecar_or_of_a_plan() -> None:
    assert not found(_facts(planned=True))
    assert not found(_facts(pods=(pod(proxy=False),)))
