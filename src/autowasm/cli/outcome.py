"""The result of `wasmc run`, before it is text or JSON.

Invariant: `exit_status` is 1 exactly where the module did not start or failed.
"""

from dataclasses import dataclass

from autowasm.cli.modules import Module
from autowasm.sandbox.http import Exchange
from autowasm.sandbox.logs import LogLine
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.state import Metric
from autowasm.sandbox.tcp import Conversation
from autowasm.sandbox.verdict import Outcome, Verdict


@dataclass(frozen=True, slots=True)
class StartResult:
    """`status` is `True`, `False` or `Unknown`, as in the condition `Starts`; `verdict` is None if the checks refuse the module."""

    status: str
    reason: str
    message: str
    verdict: Verdict | None = None
    log: tuple[LogLine, ...] = ()


@dataclass(frozen=True, slots=True)
class RunResult:
    """`exchange` or `conversation`, if the module starts; `plain` is the exchange without the filter. `metrics` after all."""

    module: Module
    plugin: Plugin
    start: StartResult
    exchange: Exchange | None = None
    plain: Exchange | None = None
    conversation: Conversation | None = None
    metrics: tuple[Metric, ...] = ()

    @property
    def exit_status(self) -> int:
        """See `wasmc run --help`."""
        verdict = self.start.verdict
        passed = self.exchange or self.conversation
        has_started = verdict is not None and verdict.outcome is Outcome.STARTS
        return 0 if has_started and passed is not None and passed.failure is None else 1
