"""Step Module: the module starts with its configuration."""

from collections.abc import Iterator
from typing import Final

from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step
from autowasm.reasons import Reason

_finding: Final = Reporter(Step.MODULE)
_LEVELS: Final = {"True": Level.OK, "False": Level.ERROR}
_REMEDIES: Final[dict[str, str]] = {
    Reason.CONFIGURATION_REFUSED: "correct the configuration",
    Reason.START_FAILED: "push a module that starts, or give it the environment that it needs (spec.filter.env)",
    Reason.FIRST_REQUEST_FAILED: "check whether the filter expects headers that a plain request lacks",
    Reason.FIRST_REQUEST_HELD: "check whether the filter waits for something that never comes",
    Reason.CALLOUT_NEEDED: "make sure that the cluster exists in each sidecar (--call CLUSTER=FILE answers the call)",
    Reason.DEPENDS_ON_ENVOY: "compare with a real sidecar (--property PATH=VALUE sets what the filter asks for)",
    Reason.PREFLIGHT_UNAVAILABLE: "see the log of wasmer",
}


def starts(facts: Facts) -> Iterator[Finding]:
    """The verdict, from this machine or from the status."""
    start = facts.start
    if start is None:
        return
    level = _LEVELS.get(start.status, Level.WARNING)
    field = "" if facts.planned else "status.conditions[Starts]"
    if level is Level.OK:
        yield _finding(level, "Starts", facts.name, start.message, field=field)
        return
    advice = _REMEDIES.get(start.reason, "test the filter in a sidecar before you rely on it")
    what = f"{start.reason}: {start.message}"
    yield _finding(
        level, "Starts", facts.name, what, f"{advice}; to reproduce: {start.command}", field=field
    )


CHECKS: Final[tuple[Check, ...]] = (starts,)
