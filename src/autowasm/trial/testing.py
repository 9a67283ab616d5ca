"""Runs the cases of a suite, each in a new instance of the filter; each module is compiled once.

Invariants: a case cannot affect another one; a file of the suite that cannot be read is a UsageError before the first case.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from msgspec import UNSET, UnsetType

from autowasm.api.v1alpha1 import FailStrategy
from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion, envoy_version
from autowasm.errors import UsageError
from autowasm.sandbox.clusteranswers import Answering
from autowasm.sandbox.engine import Compiled
from autowasm.sandbox.http import Exchange
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import FailurePolicy, Plugin
from autowasm.sandbox.properties import Value, merged
from autowasm.sandbox.protocol import LogLevel
from autowasm.sandbox.state import LogLine
from autowasm.sandbox.vm import StartFailure
from autowasm.trial import envoyrun, inputs, strictfile
from autowasm.trial.differences import differences
from autowasm.trial.matching import Mismatch, exchange_mismatches, start_mismatches
from autowasm.trial.strictfile import Lines
from autowasm.trial.suite import SUITE, Case, Expect, ExpectedStart, Level, Setting, Suite
from autowasm.trial.trial import UNKNOWN_TO_ENVOY, Subject, Trial

_T = TypeVar("_T")
POLICIES: Final = {
    FailStrategy.FAIL_CLOSE: FailurePolicy.CLOSED,
    FailStrategy.FAIL_OPEN: FailurePolicy.DEPRECATED_OPEN,
    FailStrategy.FAIL_RELOAD: FailurePolicy.RELOAD,
}
"""As `api/envoyfilter.py` renders them and `preflight/verdicts.py` reads them."""
MODULE: Final = "defaults.module"

Load = Callable[[Path], Compiled]
"""The compiled module in a file. Raises ContentRejected if Envoy would not load it, CannotCompile."""


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A request and its expected result. `path`: the path of `expect` in the case."""

    request: Request
    response: Response
    expect: Expect
    path: str


@dataclass(frozen=True, slots=True)
class PreparedCase:
    """A case with everything that it needs. `line`: its first line in the file; `field`: its path there."""

    name: str
    line: int
    field: str
    module: Path
    plugin: Plugin
    clusters: Mapping[str, Answering]
    properties: Mapping[str, Value]
    log_level: LogLevel
    start: ExpectedStart
    steps: tuple[PreparedStep, ...]


@dataclass(frozen=True, slots=True)
class PreparedSuite:
    """A suite whose files were read."""

    name: str
    lines: Lines
    envoy: EnvoyVersion
    allow_imports: frozenset[str]
    cases: tuple[PreparedCase, ...]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """`log` are the lines of the filter, shown for a case that failed. `seconds` of real time.

    `exchanges`: the result of each request in the sandbox; None if the filter does not start there. `sandbox_only`: why the case was
    not also run in an Envoy, although that was requested.
    """

    case: PreparedCase
    mismatches: tuple[Mismatch, ...]
    log: tuple[LogLine, ...]
    seconds: float
    exchanges: tuple[Exchange, ...] | None = None
    sandbox_only: str = ""

    @property
    def passed(self) -> bool:
        """Whether all results were as expected."""
        return not self.mismatches


def prepare(
    path: Path,
    content: bytes,
    *,
    module: Path | None,
    envoy: EnvoyVersion | None,
    allow_imports: frozenset[str] = frozenset(),
) -> PreparedSuite:
    """Read a suite and the files that it names. `module` and `envoy` replace those of the suite. Raises UsageError."""
    name = str(path)
    suite: Suite = strictfile.read(content, SUITE, name=name)
    lines = Lines(content)
    if envoy is None:
        envoy = OLDEST_ENVOY if suite.envoy_version is UNSET else envoy_version(suite.envoy_version)
    cases = []
    for at, case in enumerate(suite.cases):
        where = f"cases[{at}]"
        line = lines.at(where)
        try:
            cases.append(
                _prepared(case, suite.defaults, path.parent, module=module, line=line, field=where)
            )
        except UsageError as error:
            raise UsageError(f"{name}: line {line}: {where}: {error}") from error
    allowed = allow_imports | frozenset(suite.allow_imports)
    return PreparedSuite(name, lines, envoy, allowed, tuple(cases))


def _prepared(
    case: Case, defaults: Setting, folder: Path, *, module: Path | None, line: int, field: str
) -> PreparedCase:
    if module is None:
        named = _either(case.module, defaults.module)
        if named is None:
            raise UsageError(f"no module: set {MODULE}, or use --module")
        module = folder / named
    clusters = {
        name: inputs.answers_of(answers, folder=folder)
        for name, answers in {**defaults.callouts, **case.callouts}.items()
    }
    level = _either(case.log_level, defaults.log_level)
    is_refused = case.expected_start.outcome.value == "Refused"
    steps = () if is_refused else tuple(_steps(case, folder))
    return PreparedCase(
        name=case.name,
        line=line,
        field=field,
        module=module,
        plugin=_plugin(case, defaults, folder),
        clusters=clusters,
        properties=merged(defaults.properties, case.properties),
        log_level=LogLevel[(level or Level.INFO).name],
        start=case.expected_start,
        steps=steps,
    )


def _plugin(case: Case, defaults: Setting, folder: Path) -> Plugin:
    strategy = _either(case.fail_strategy, defaults.fail_strategy) or FailStrategy.FAIL_CLOSE
    return Plugin(
        name="test",
        root_id=_either(case.root_id, defaults.root_id) or "",
        vm_id="test",
        configuration=_configuration(case, defaults, folder),
        environment={**defaults.env, **case.env},
        failure_policy=POLICIES[strategy],
    )


def _configuration(case: Case, defaults: Setting, folder: Path) -> bytes | None:
    for setting in (case, defaults):
        if setting.config_file is not UNSET:
            if setting.config is not UNSET:
                raise UsageError("config and configFile are mutually exclusive")
            return inputs.read_file(folder / setting.config_file, flag="configFile")
        if setting.config is not UNSET:
            return inputs.configuration_of(setting.config)
    return None


def _steps(case: Case, folder: Path) -> Iterator[PreparedStep]:
    several = case.steps is not UNSET
    for at, step in enumerate(case.all_steps):
        yield PreparedStep(
            inputs.request_of(step.request, folder=folder),
            inputs.response_of(step.upstream, folder=folder),
            step.expect,
            f"steps[{at}].expect" if several else "expect",
        )


def _either(value: _T | UnsetType, default: _T | UnsetType) -> _T | None:
    chosen = default if value is UNSET else value
    return None if chosen is UNSET else chosen


def run_case(case: PreparedCase, suite: PreparedSuite, load: Load) -> CaseResult:
    """Run one case. Blocks. Raises the errors of `load`."""
    compiled = load(case.module)
    began = time.perf_counter()
    trial = Trial(
        Subject(
            compiled,
            case.plugin,
            suite.envoy,
            suite.allow_imports,
            case.clusters,
            case.properties,
            case.log_level,
        )
    )
    result = _played(case, trial)
    return replace(result, seconds=time.perf_counter() - began)


def _played(case: PreparedCase, trial: Trial) -> CaseResult:
    started = trial.started
    log = trial.start_log
    refused = None
    if isinstance(started, StartFailure):
        if started.kind in UNKNOWN_TO_ENVOY:
            text = f"no verdict: {started.message} (this says nothing about Envoy)"
            why = "the sandbox has no verdict"
            return CaseResult(case, (Mismatch("start", (text,)),), log, 0, sandbox_only=why)
        refused = started.message
    found = tuple(start_mismatches(case.start, refused=refused, log=log))
    if refused is not None:
        return CaseResult(case, found, log, 0)
    exchanges = []
    for step in case.steps:
        exchange = trial.send(step.request, step.response)
        exchanges.append(exchange)
        log += exchange.log
        # Now: the metrics of an exchange are those of the filter, and the next request changes them.
        found += tuple(exchange_mismatches(step.expect, exchange, path=step.path))
    return CaseResult(case, found, log, 0, tuple(exchanges))


async def compared_with_envoy(
    result: CaseResult, module: bytes, program: Path, version: str
) -> CaseResult:
    """The result, with each difference of a real Envoy as a mismatch. Raises EnvoyFailed."""
    case = result.case
    why = result.sandbox_only or _only_in_the_sandbox(case)
    if why:
        return replace(result, sandbox_only=why)
    exchanges = [(step.request, step.response) for step in case.steps]
    setup = envoyrun.Setup(module, case.plugin, exchanges, case.clusters, case.log_level)
    began = time.perf_counter()
    observed = await envoyrun.run(program, version, setup)
    seconds = result.seconds + time.perf_counter() - began
    found = differences(result.exchanges, result.log, observed, start="refused")
    mismatches = tuple(
        Mismatch(
            f"Envoy {version}: {each.where}",
            (f"- sandbox: {each.sandbox}", f"+ Envoy: {each.envoy}"),
        )
        for each in found
    )
    return replace(result, mismatches=result.mismatches + mismatches, seconds=seconds)


def _only_in_the_sandbox(case: PreparedCase) -> str:
    if case.properties:
        return "it sets properties"
    found = envoyrun.impossible(case.clusters)
    return "" if found is None else f"callouts.{found[0]}: {found[1]}"
