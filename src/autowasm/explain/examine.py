"""The list of all checks, and `examine`, which runs them.

To add a check, write a function in the file of its step (`checks/`) and add it to that file's `CHECKS`.
Invariant: findings are in the order of `Step`, from the source to the Pods.
"""

from typing import Final

from autowasm.explain.checks import (
    envoyfilter,
    network,
    order,
    pods,
    ports,
    resource,
    rollout,
    running,
    server,
    source,
)
from autowasm.explain.facts import Facts
from autowasm.explain.finding import NOT_CHECKED, Check, Finding, Level, Step

CHECKS: Final[tuple[Check, ...]] = (
    *resource.CHECKS,
    *source.CHECKS,
    *server.CHECKS,
    *envoyfilter.CHECKS,
    *order.CHECKS,
    *rollout.CHECKS,
    *pods.CHECKS,
    *running.CHECKS,
    *ports.CHECKS,
    *network.CHECKS,
)
_ORDER: Final = {step: place for place, step in enumerate(Step)}
_STEP_OF: Final = {
    "secret": Step.SOURCE,
    "source": Step.SOURCE,
    "envoyfilter": Step.ENVOYFILTER,
    "envoyfilters": Step.ORDER,
    "wasmplugins": Step.ORDER,
    "services": Step.PORTS,
    "pods": Step.PODS,
    "neighbours": Step.PODS,
    "namespaces": Step.PODS,
    "mesh": Step.PODS,
    "wasmer service": Step.MODULE,
    "wasmer pods": Step.MODULE,
    "wasmer endpoints": Step.MODULE,
}


def examine(facts: Facts) -> tuple[Finding, ...]:
    """The findings of all checks, and notes on facts that were not read, or only in part."""
    found = [finding for check in CHECKS for finding in check(facts)]
    unread = facts.unread
    found += [
        _unread(facts, [what for what in unread if unread[what] == why], why)
        for why in dict.fromkeys(unread.values())
    ]
    found += [_cut(facts, what, most) for what, most in facts.cut.items()]
    return tuple(sorted(found, key=lambda finding: _ORDER[finding.step]))


def _unread(facts: Facts, what: list[str], why: str) -> Finding:
    """One note for all facts that could not be read for the same reason."""
    return Finding(
        level=Level.NOTE,
        step=_STEP_OF.get(what[0], Step.NETWORK) if len(what) == 1 else Step.NETWORK,
        check=NOT_CHECKED,
        object=facts.name,
        what=f"not checked: {', '.join(what)}: {why}",
    )


def _cut(facts: Facts, what: str, most: int) -> Finding:
    return Finding(
        level=Level.NOTE,
        step=_STEP_OF.get(what, Step.NETWORK),
        check=NOT_CHECKED,
        object=facts.name,
        what=f"not checked: {what} after the first {most}",
    )
