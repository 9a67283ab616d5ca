"""The result of `wasmc run`, and its JSON document. docs/reference/wasmc-run.md describes the keys.

Invariants: `exit_status` is 1 exactly if the module did not start or failed, or a real Envoy behaved differently; the keys are
stable and always present; a key that does not apply is null.
"""

import base64
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autowasm.cli.modules import Module
from autowasm.sandbox.clusteranswers import Broken, Callout, GrpcAnswer
from autowasm.sandbox.http import Exchange
from autowasm.sandbox.message import Message, decoded
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.protocol import MetricType
from autowasm.sandbox.state import LogLine, Metric
from autowasm.sandbox.tcp import Conversation
from autowasm.sandbox.verdict import Outcome, Verdict
from autowasm.sandbox.vm import Failure
from autowasm.trial.differences import Difference, Header, compared


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
    """The differences of a real Envoy. `version` is its release."""

    version: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class RunResult:
    """`envoy`: with --engine envoy. `exchange` or `conversation`: if the module starts. `plain`: without the filter. `metrics`: at the end."""

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


def as_json(result: RunResult) -> str:
    """The whole result; keys in a fixed order."""
    module, passed = result.module, result.exchange or result.conversation
    document = {
        "module": {"source": module.source, "sha256": module.sha256, "size": len(module.data)},
        "start": start_json(result.start),
        "exchange": None
        if result.exchange is None or result.plain is None
        else _exchange(result.exchange, result.plain),
        "connection": None if result.conversation is None else _connection(result.conversation),
        "failure": _failure(passed.failure) if passed is not None else None,
        "log": [
            *_log(result.start.log, "start"),
            *_log(passed.log if passed is not None else (), "request"),
        ],
        "metrics": [_metric(metric) for metric in result.metrics],
        "callouts": [_callout(each) for each in passed.callouts] if passed is not None else [],
        "asked": list(passed.doubts) if passed is not None else [],
        "fuel": passed.fuel if passed is not None else None,
        "envoy": None if result.envoy is None else dataclasses.asdict(result.envoy),
    }
    return json.dumps(document, indent=2)


def start_json(start: StartResult) -> dict[str, Any]:
    """The verdict on the start."""
    verdict = start.verdict
    return {
        "status": start.status,
        "reason": str(start.reason),
        "message": start.message,
        "phase": (verdict.phase or None) if verdict is not None else None,
        "frames": list(verdict.frames) if verdict is not None else [],
        "asked": list(verdict.asked) if verdict is not None else [],
        "fuel": verdict.fuel if verdict is not None else None,
    }


def _exchange(found: Exchange, plain: Exchange) -> dict[str, Any]:
    before = None if found.is_local_reply else plain.response
    return {
        "request": _message(found.request, plain.request),
        "response": _message(found.response, before),
        "status": found.status or None,
        "localReply": found.is_local_reply,
        "details": found.details,
        "timedOut": found.has_timed_out,
        "filtered": found.is_filtered,
        "warnings": list(found.warnings),
    }


def _message(found: Message | None, before: Message | None) -> dict[str, Any] | None:
    if found is None:
        return None
    headers = compared(before.headers if before is not None else None, found.headers)
    trailers = compared(before.trailers if before is not None else None, found.trailers)
    return {
        "headers": [_header(each) for each in headers],
        **_data("body", found.body),
        "bodyChanged": None if before is None else before.body != found.body,
        "trailers": [_header(each) for each in trailers],
        "complete": found.is_complete,
    }


def _header(header: Header) -> dict[str, Any]:
    return {
        "name": _text(header.name),
        "value": _text(header.value),
        "change": header.change.value,
        "was": None if header.was is None else _text(header.was),
    }


def _connection(found: Conversation) -> dict[str, Any]:
    return {
        **_data("toService", found.to_service),
        **_data("toClient", found.to_client),
        "closed": found.is_closed,
        "held": found.is_held,
        "filtered": found.is_filtered,
    }


def _failure(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {
        "kind": failure.kind.value,
        "message": failure.message,
        "frames": list(failure.frames),
    }


def _log(lines: Sequence[LogLine], phase: str) -> list[dict[str, Any]]:
    return [
        {
            "phase": phase,
            "level": line.level.name.lower(),
            "message": line.message.decode("utf-8", "replace"),
        }
        for line in lines
    ]


def _metric(metric: Metric) -> dict[str, Any]:
    is_histogram = metric.type is MetricType.HISTOGRAM
    return {
        "type": metric.type.name.lower(),
        "name": metric.name.decode("utf-8", "replace"),
        "value": None if is_histogram else metric.value,
        "recorded": list(metric.recorded) if is_histogram else None,
    }


def _callout(callout: Callout) -> dict[str, Any]:
    answer = callout.answer
    status: int | None = None
    if isinstance(answer, GrpcAnswer) or (answer is not None and not isinstance(answer, Broken)):
        status = answer.status
    return {
        "kind": callout.kind.value,
        "cluster": callout.cluster,
        "service": callout.service or None,
        "method": callout.method or None,
        "headers": [{"name": _text(n), "value": _text(v)} for n, v in decoded(callout.headers)],
        **_data("body", callout.body),
        "timeoutMilliseconds": callout.timeout_milliseconds,
        "known": answer is not None,
        "status": status,
    }


def _data(name: str, data: bytes) -> dict[str, Any]:
    """The data as text, or else in base64."""
    try:
        return {name: data.decode(), f"{name}Base64": None}
    except UnicodeDecodeError:
        return {name: None, f"{name}Base64": base64.b64encode(data).decode()}


def _text(text: str) -> str:
    """Replaces lone surrogates, which stand for bytes that are not UTF-8, because JSON cannot contain them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
