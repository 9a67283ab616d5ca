"""`wasmc run`: starts a module with its configuration on this machine, and shows its effect on a request.

Invariants: the module runs in the sandbox, and nothing leaves this process except to an Envoy on this machine with --engine; a module
that Envoy would not load, or that does not start, is printed as a result.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from autowasm.api.v1alpha1 import AutoWasm
from autowasm.cli import engineoption, fetching, givenplugin, modules, registries, runresult
from autowasm.cli.modules import Module
from autowasm.cli.options import offered
from autowasm.cli.runresult import EnvoyResult, RunResult, StartResult
from autowasm.cli.stdio import is_coloured, is_stdin, width_of
from autowasm.errors import ContentRejected, UsageError
from autowasm.limits import Limits
from autowasm.net.pools import Pools
from autowasm.preflight.verdicts import consequence_of, described
from autowasm.registry.credentials import Credential
from autowasm.sandbox.clusteranswers import Answering
from autowasm.sandbox.engine import compile_module, make_engine
from autowasm.sandbox.errors import CannotCompile
from autowasm.sandbox.message import Request, Response
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.properties import Value
from autowasm.sandbox.protocol import LogLevel
from autowasm.sandbox.state import LogLine
from autowasm.sandbox.tcp import Sent, Side
from autowasm.sandbox.verdict import Outcome, Verdict, of_uncompilable
from autowasm.trial import envoyrun, inputs
from autowasm.trial.differences import differences
from autowasm.trial.inputs import with_length
from autowasm.trial.trial import Subject, Trial, verdict_of, without_filter
from autowasm.wasm.module import inspect_bytes


def run(arguments: argparse.Namespace) -> int:
    """Print the result, return the exit status. Raises AutoWasmError, OSError, KeyboardInterrupt as `pushpull.run`."""
    registries.begin(arguments)
    registries.check_ca_file(arguments)
    _check(arguments)
    program = _program(arguments)
    given = _Given(arguments)
    if program is not None:
        if (found := envoyrun.impossible(given.clusters)) is not None:
            cluster, why = found
            raise UsageError(f"--call {cluster}: {why}")
        envoy = engineoption.identify(program)
        arguments.envoy_version = envoy.release
    module, plugin = _module_and_plugin(arguments)
    result = _run(module, plugin, given, arguments)
    if program is not None:
        result = _compared(result, envoy, given, arguments)
    if arguments.json:
        print(runresult.as_json(result), flush=True)
    else:
        width = width_of(sys.stdout)
        text = runresult.as_text(result, width=width, colour=is_coloured(sys.stdout))
        print(text, flush=True)
    return result.exit_status


def _check(arguments: argparse.Namespace) -> None:
    """Raises UsageError for flags that are mutually exclusive."""
    if arguments.module is None and arguments.file is None:
        raise UsageError("name a module (FILE|REF), or an AutoWasm with -f")
    if arguments.name is not None and arguments.file is None:
        raise UsageError("--name chooses an AutoWasm of the file of -f")
    readers = [
        name
        for name, reads in (
            ("FILE", arguments.module is not None and is_stdin(Path(arguments.module))),
            ("-f", arguments.file is not None and is_stdin(arguments.file)),
            ("--config", arguments.config == "@-"),
            ("--body", arguments.body == "@-"),
            ("--response-body", arguments.response_body == "@-"),
            ("--password-stdin", arguments.password_stdin),
        )
        if reads
    ]
    if len(readers) > 1:
        raise UsageError(f"{' and '.join(readers)}: only one can be read from standard input")
    if arguments.tcp:
        defaults: dict[str, Any] = {
            "--request": "GET /",
            "--header": [],
            "--response-status": 200,
            "--response-header": [],
        }
        for flag, default in defaults.items():
            if getattr(arguments, flag[2:].replace("-", "_")) != default:
                raise UsageError(f"{flag}: a TCP connection (--tcp) has none")


def _program(arguments: argparse.Namespace) -> Path | None:
    """The Envoy of --engine; None for the sandbox. Raises UsageError."""
    program = engineoption.find(arguments.engine)
    if program is not None:
        for flag in ("--tcp", "--property"):
            if getattr(arguments, flag[2:]):
                raise UsageError(
                    f"{flag}: is possible in the sandbox only, not with --engine envoy"
                )
    return program


def _compared(
    result: RunResult, envoy: engineoption.Engine, given: "_Given", arguments: argparse.Namespace
) -> RunResult:
    """The result with the differences of a real Envoy. A module that the checks refuse is not run there."""
    verdict = result.start.verdict
    if verdict is None:
        return result
    level = LogLevel[arguments.log_level.upper()]
    setup = envoyrun.Setup(
        result.module.data,
        result.plugin,
        [(given.request, given.response)],
        given.clusters,
        level,
    )
    observed = registries.run_to_end(envoyrun.run(envoy.program, envoy.version, setup))
    exchange = result.exchange
    log = result.start.log + (exchange.log if exchange is not None else ())
    start = {"True": "starts", "False": "refused"}.get(result.start.status, "no verdict")
    exchanges = None if exchange is None else (exchange,)
    found = differences(exchanges, log, observed, start=start)
    return replace(result, envoy=EnvoyResult(envoy.version, found))


class _Given:
    """The environment of the filter, from the flags. Raises UsageError."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.body = _body(arguments.body, "--body")
        self.response_body = _body(arguments.response_body, "--response-body")
        self.request = _request(arguments, self.body)
        self.response = with_length(
            Response(
                arguments.response_status,
                tuple(
                    inputs.header(text, flag="--response-header")
                    for text in arguments.response_header
                ),
                self.response_body,
            )
        )
        self.properties: dict[str, Value] = {}
        for text in arguments.property:
            inputs.given_property(text, self.properties)
        self.clusters: dict[str, Answering] = {}
        for text in arguments.call:
            cluster, equals, name = text.rpartition("=")
            if not equals or not cluster or not name:
                raise UsageError(f"--call: must be CLUSTER=FILE, not {text[:100]!r}")
            self.clusters[cluster] = inputs.answer_file(Path(name), flag="--call")


def _body(text: str | None, flag: str) -> tuple[bytes, ...]:
    found = givenplugin.content(text, flag=flag) if text else b""
    return (found,) if found else ()


def _request(arguments: argparse.Namespace, body: tuple[bytes, ...]) -> Request:
    request = inputs.request_line(arguments.request)
    headers = [inputs.header(text, flag="--header") for text in arguments.header]
    hosts = [value for name, value in headers if name == "host"]
    if hosts:
        request = replace(request, authority=hosts[-1])
    kept = tuple(pair for pair in headers if pair[0] != "host")
    return with_length(replace(request, headers=kept, body=body))


def _module_and_plugin(arguments: argparse.Namespace) -> tuple[Module, Plugin]:
    if arguments.file is None:
        return modules.load(arguments.module, arguments), givenplugin.of_flags(arguments)
    autowasm = givenplugin.read_autowasm(arguments.file, arguments.name)
    if arguments.module is None:
        login = registries.given_login(arguments)
        module, plugin = registries.run_to_end(_fetch(autowasm, login, arguments))
    else:
        module = modules.load(arguments.module, arguments)
        plugin = givenplugin.of_autowasm(autowasm, givenplugin.record_of(autowasm, module))
    return module, givenplugin.of_flags(arguments, plugin)


async def _fetch(
    autowasm: AutoWasm, login: Credential | None, arguments: argparse.Namespace
) -> tuple[Module, Plugin]:
    with Pools(transfers=1) as pools:
        async with (
            fetching.opened(autowasm, login, arguments, pools=pools) as source,
            fetching.fetched(source, arguments, pools=pools) as (record, path),
        ):
            module = Module(record.origin, await pools.disk.run(path.read_bytes))
            return module, givenplugin.of_autowasm(autowasm, record)


def _run(module: Module, plugin: Plugin, given: _Given, arguments: argparse.Namespace) -> RunResult:
    offer = offered(arguments)
    try:
        inspect_bytes(module.data, limits=Limits(), **offer)
    except ContentRejected as error:
        return RunResult(module, plugin, StartResult("False", error.reason, str(error)))
    try:
        compiled = compile_module(make_engine(), module.data)
    except CannotCompile as error:
        return RunResult(module, plugin, _start(of_uncompilable(error), plugin, ()))
    subject = Subject(
        compiled,
        plugin,
        offer["envoy"],
        offer["allow_imports"],
        given.clusters,
        given.properties,
        LogLevel[arguments.log_level.upper()],
    )
    trial = Trial(subject)
    verdict = verdict_of(trial.started)
    result = RunResult(module, plugin, _start(verdict, plugin, trial.start_log))
    if verdict.outcome is not Outcome.STARTS:
        return result
    if arguments.tcp:
        sent = [
            *(Sent(Side.CLIENT, piece) for piece in given.body),
            *(Sent(Side.SERVICE, piece) for piece in given.response_body),
        ]
        conversation = trial.converse(sent)
        return replace(result, conversation=conversation, metrics=conversation.metrics)
    exchange = trial.send(given.request, given.response)
    plain = without_filter(
        given.request, given.response, envoy=subject.envoy, engine=compiled.engine
    )
    return replace(result, exchange=exchange, plain=plain, metrics=exchange.metrics)


def _start(verdict: Verdict, plugin: Plugin, log: tuple[LogLine, ...]) -> StartResult:
    """The verdict in its own words, because there may be no AutoWasm, and the log is printed separately."""
    status, reason, message = described(verdict, plugin)
    if verdict.outcome is Outcome.REFUSED:
        message = f"{verdict.message}, so {consequence_of(plugin)}"
    elif verdict.outcome is Outcome.DOUBTFUL:
        message = verdict.message
    return StartResult(status, reason, message, verdict, log)
