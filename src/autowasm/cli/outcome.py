"""The result of `wasmc run`, before it is text or JSON.

Invariant: `exit_status` is 1 exactly where the module did not start or failed, or a real Envoy did something else.
"""

from dataclasses import dataclass

from autowasm.cli.modules import Module
from autowasm.sandbox.http import Exchange
from autowasm.sandbox.logs import LogLine
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.state import Metric
from autowasm.sandbox.tcp import Conversation
from autowasm.sandbox.verdict import Outcome, Verdict
from autowasm.trial.differences import Difference


@dataclass(frozen=True, slots=True)
class StartResult:
    """`status` is `True`, `False` or `Unknown`, as in the condition `Starts`; `verdict` is None if the checks refuse the module."""

    status: str
    reason: str
    message: str
    verdict: Verdict | None = None
    log: tuple[LogLine, ...] = ()


@dataclass(frozen=True, slots=True)
class EnvoyResult:
    """What a real Envoy did otherwise. `version` is its release."""

    version: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class RunResult:
    """`envoy`: with --engine envoy. `exchange` or `conversation`, if the module starts; `plain` is the exchange without the filter. `metrics` after all."""

    module: Module
    plugin: Plugin
    start: StartResult
    exchange: Exchange | None = None
    plain: Exchange | None = None
    conversation: Conversation | None = None
    metrics: tuple[Metric, ...] = ()
    envoy: EnvoyResult | None = None

    @property
    def exit_status(self) -> int:
        """See `wasmc run --help`."""
        verdict = self.start.verdict
        passed = self.exchange or self.conversation
        has_started = verdict is not None and verdict.outcome is Outcome.STARTS
        has_passed = has_started and passed is not None and passed.failure is None
        is_same = self.envoy is None or not self.envoy.differences
        return 0 if has_passed and is_same else 1
