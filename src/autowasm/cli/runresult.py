"""The result of `wasmc run`: its text, and its JSON document. docs/reference/wasmc-run.md describes the keys.

Invariants: `exit_status` is 1 exactly if the module did not start or failed, or a real Envoy behaved differently; the keys are
stable and always present; a key that does not apply is null; no line of text is wider than the terminal, except for a single word that
is; everything that comes from the module is printable; the marks `+`, `~` and `-` have the same meaning as the colours.
"""

import base64
import dataclasses
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from autowasm.cli.modules import Module
from autowasm.cli.stdio import UNWRAPPED, fitted
from autowasm.sandbox.clusteranswers import Broken, Callout, GrpcAnswer
from autowasm.sandbox.http import Exchange
from autowasm.sandbox.message import Message, decoded
from autowasm.sandbox.plugin import Plugin
from autowasm.sandbox.protocol import LogLevel, MetricType
from autowasm.sandbox.state import LogLine, Metric
from autowasm.sandbox.tcp import Conversation
from autowasm.sandbox.verdict import Outcome, Verdict
from autowasm.sandbox.vm import Failure
from autowasm.text import shown
from autowasm.trial.differences import Change, Difference, Header, compared
from autowasm.trial.matching import callout_line
from autowasm.units import format_size


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
        else _exchange_json(result.exchange, result.plain),
        "connection": None
        if result.conversation is None
        else _connection_json(result.conversation),
        "failure": _failure_json(passed.failure) if passed is not None else None,
        "log": [
            *_log_json(result.start.log, "start"),
            *_log_json(passed.log if passed is not None else (), "request"),
        ],
        "metrics": [_metric_json(metric) for metric in result.metrics],
        "callouts": [_callout_json(each) for each in passed.callouts] if passed is not None else [],
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


def _exchange_json(found: Exchange, plain: Exchange) -> dict[str, Any]:
    before = None if found.is_local_reply else plain.response
    return {
        "request": _message_json(found.request, plain.request),
        "response": _message_json(found.response, before),
        "status": found.status or None,
        "localReply": found.is_local_reply,
        "details": found.details,
        "timedOut": found.has_timed_out,
        "filtered": found.is_filtered,
        "warnings": list(found.warnings),
    }


def _message_json(found: Message | None, before: Message | None) -> dict[str, Any] | None:
    if found is None:
        return None
    headers = compared(before.headers if before is not None else None, found.headers)
    trailers = compared(before.trailers if before is not None else None, found.trailers)
    return {
        "headers": [_header_json(each) for each in headers],
        **_data_json("body", found.body),
        "bodyChanged": None if before is None else before.body != found.body,
        "trailers": [_header_json(each) for each in trailers],
        "complete": found.is_complete,
    }


def _header_json(header: Header) -> dict[str, Any]:
    return {
        "name": _json_text(header.name),
        "value": _json_text(header.value),
        "change": header.change.value,
        "was": None if header.was is None else _json_text(header.was),
    }


def _connection_json(found: Conversation) -> dict[str, Any]:
    return {
        **_data_json("toService", found.to_service),
        **_data_json("toClient", found.to_client),
        "closed": found.is_closed,
        "held": found.is_held,
        "filtered": found.is_filtered,
    }


def _failure_json(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {
        "kind": failure.kind.value,
        "message": failure.message,
        "frames": list(failure.frames),
    }


def _log_json(lines: Sequence[LogLine], phase: str) -> list[dict[str, Any]]:
    return [
        {
            "phase": phase,
            "level": line.level.name.lower(),
            "message": line.message.decode("utf-8", "replace"),
        }
        for line in lines
    ]


def _metric_json(metric: Metric) -> dict[str, Any]:
    is_histogram = metric.type is MetricType.HISTOGRAM
    return {
        "type": metric.type.name.lower(),
        "name": metric.name.decode("utf-8", "replace"),
        "value": None if is_histogram else metric.value,
        "recorded": list(metric.recorded) if is_histogram else None,
    }


def _callout_json(callout: Callout) -> dict[str, Any]:
    answer = callout.answer
    status: int | None = None
    if isinstance(answer, GrpcAnswer) or (answer is not None and not isinstance(answer, Broken)):
        status = answer.status
    return {
        "kind": callout.kind.value,
        "cluster": callout.cluster,
        "service": callout.service or None,
        "method": callout.method or None,
        "headers": [
            {"name": _json_text(n), "value": _json_text(v)} for n, v in decoded(callout.headers)
        ],
        **_data_json("body", callout.body),
        "timeoutMilliseconds": callout.timeout_milliseconds,
        "known": answer is not None,
        "status": status,
    }


def _data_json(name: str, data: bytes) -> dict[str, Any]:
    """The data as text, or else in base64."""
    try:
        return {name: data.decode(), f"{name}Base64": None}
    except UnicodeDecodeError:
        return {name: None, f"{name}Base64": base64.b64encode(data).decode()}


def _json_text(text: str) -> str:
    """Replaces lone surrogates, which stand for bytes that are not UTF-8, because JSON cannot contain them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


MIN_WIDTH: Final = 40
MAX_WIDTH: Final = 120
_LABEL: Final = 11
_LONGEST: Final = 2_000
_MOST_LINES: Final = 20
"""Lines of a body. --json has all of it."""
_MARKS: Final = {Change.SAME: " ", Change.ADDED: "+", Change.CHANGED: "~", Change.REMOVED: "-"}
RED, GREEN, YELLOW, BOLD = "31", "32", "33", "1"
_COLOURS: Final = {Change.ADDED: GREEN, Change.CHANGED: YELLOW, Change.REMOVED: RED}
_STATUS_COLOURS: Final = {"True": GREEN, "False": RED, "Unknown": YELLOW}
_LEVEL_COLOURS: Final = {LogLevel.WARNING: YELLOW, LogLevel.ERROR: RED, LogLevel.CRITICAL: RED}


class Page:
    """Lines with labels in a separate column."""

    def __init__(self, *, width: int, colour: bool) -> None:
        self.lines: list[str] = []
        self._width = fitted(width, least=MIN_WIDTH, most=MAX_WIDTH)
        self._colour = colour

    def add(self, label: str, text: str, colour: str = "", *, indent: int = 0) -> None:
        """Add an item with its label. `indent`: the indentation of further lines."""
        self._wrap(label, text, colour=colour, more=indent)

    def row(self, mark: str, text: str, colour: str = "", *, indent: int = 2) -> None:
        """Add a line below an item, with a mark before it."""
        self._wrap("", f"{mark} {text}", colour=colour, more=indent)

    def _wrap(self, label: str, text: str, *, colour: str, more: int) -> None:
        room = self._width - _LABEL
        wrapped = textwrap.wrap(
            text,
            room,
            subsequent_indent=" " * more,
            break_on_hyphens=False,
            drop_whitespace=True,
        ) or [""]
        for number, line in enumerate(wrapped):
            head = self._painted(f"{label:<{_LABEL}}", BOLD if label else "") if number == 0 else ""
            self.lines.append((head or " " * _LABEL) + self._painted(line, colour))
        self.lines[-len(wrapped) :] = [line.rstrip() for line in self.lines[-len(wrapped) :]]

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour and text.strip() else text


def as_text(result: RunResult, *, width: int, colour: bool) -> str:
    """The whole result."""
    page = Page(width=width, colour=colour)
    module = result.module
    size = format_size(len(module.data))
    sha256 = module.sha256 if width >= UNWRAPPED else module.sha256[:12]
    page.add("Module", f"{shown(module.source, most=300)} ({size}, sha256 {sha256})")
    configuration = result.plugin.configuration
    if configuration is not None:
        page.add("Config", _summary(configuration))
    add_start(page, result.start)
    if result.exchange is not None and result.plain is not None:
        _add_exchange(page, result.exchange, result.plain)
    if result.conversation is not None:
        _add_conversation(page, result.conversation)
    passed = result.exchange or result.conversation
    log = result.start.log + (passed.log if passed is not None else ())
    _add_log(page, log)
    _add_metrics(page, result.metrics)
    if passed is not None:
        for number, callout in enumerate(passed.callouts):
            _add_callout(page, "Callouts" if number == 0 else "", callout)
    asked = _asked(result)
    if asked:
        page.add(
            "Asked",
            f"{', '.join(shown(each) for each in asked)}: your Envoy may have different values",
        )
    for warning in result.exchange.warnings if result.exchange is not None else ():
        page.add("Warning", warning, YELLOW)
    verdict = result.start.verdict
    if verdict is not None:
        request = f", {passed.fuel:,} for the request" if passed is not None else ""
        page.add("Fuel", f"{verdict.fuel:,} for the start{request}")
    if result.envoy is not None:
        _add_envoy(page, result.envoy)
    return "\n".join(page.lines)


def _add_envoy(page: Page, envoy: EnvoyResult) -> None:
    if not envoy.differences:
        page.add("Envoy", f"{envoy.version} behaves the same", GREEN)
        return
    page.add("Envoy", f"{envoy.version} behaves differently:", RED)
    for each in envoy.differences:
        page.row(" ", f"{each.where}:")
        page.row("-", f"sandbox: {each.sandbox}", indent=4)
        page.row("+", f"Envoy: {each.envoy}", indent=4)


def add_start(page: Page, start: StartResult) -> None:
    """Add the verdict, and the functions that were running."""
    words = {"True": "", "False": "refused: ", "Unknown": "no verdict: "}
    reason = "" if start.status == "True" else f" [{start.reason}]"
    text = f"{words[start.status]}{start.message}{reason}"
    page.add("Start", text, _STATUS_COLOURS[start.status])
    if start.verdict is not None:
        _add_frames(page, start.verdict.frames)


def _add_frames(page: Page, frames: Sequence[str]) -> None:
    if frames:
        page.row(" ", f"in {' < '.join(shown(frame) for frame in frames[:10])}")


def _add_exchange(page: Page, found: Exchange, plain: Exchange) -> None:
    _add_request(page, found, plain)
    page.add("Response", _response_line(found), RED if found.failure is not None else "")
    if found.failure is not None:
        _add_failure(page, found.failure)
    if found.response is not None:
        # A local reply comes from the filter, so there is nothing to compare it with.
        before = None if found.is_local_reply else plain.response
        _add_message(page, found.response, before)


def _add_failure(page: Page, failure: Failure) -> None:
    page.row("!", shown(failure.message, most=_LONGEST), RED)
    _add_frames(page, failure.frames)


def _add_request(page: Page, found: Exchange, plain: Exchange) -> None:
    if found.request is None:
        page.add("Request", "not forwarded to the service")
        return
    cut = "" if found.request.is_complete else ", but not completely"
    without = "" if found.is_filtered else ", without the filter"
    page.add("Request", f"forwarded to the service{cut}{without}")
    _add_message(page, found.request, plain.request)


def _response_line(found: Exchange) -> str:
    details = f" ({shown(found.details)})" if found.details else ""
    if found.response is None:
        return f"none: the stream was reset{details}"
    if found.failure is not None:
        return f"{found.status}: the module failed{details}"
    if found.has_timed_out:
        return f"{found.status}: the filter held the stream and never resumed it{details}"
    if found.is_local_reply:
        return f"{found.status}, a local reply{details}"
    cut = "" if found.response.is_complete else ", incomplete: the stream was reset"
    return f"{found.status} from the service{cut}"


def _add_message(page: Page, found: Message, before: Message | None) -> None:
    for header in compared(before.headers if before is not None else None, found.headers):
        _add_header(page, header)
    _add_body(page, found, before)
    trailers = compared(before.trailers if before is not None else None, found.trailers)
    if trailers:
        page.row(" ", "trailers:")
        for header in trailers:
            _add_header(page, header)


def _add_header(page: Page, header: Header) -> None:
    colour = _COLOURS.get(header.change, "")
    text = f"{shown(header.name)}: {shown(header.value, most=_LONGEST)}"
    page.row(_MARKS[header.change], text, colour, indent=4)
    if header.was is not None:
        page.row(" ", f"  was: {shown(header.was, most=_LONGEST)}", colour, indent=9)


def _add_body(page: Page, found: Message, before: Message | None) -> None:
    body = found.body
    is_same = before is not None and before.body == body
    if not body and (is_same or before is None):
        return
    size = format_size(len(body))
    if is_same:
        page.row(" ", f"body: {size}, unchanged")
        return
    if before is None:
        page.row(" ", f"body: {size}")
    elif not before.body:
        page.row("+", f"body: {size}", GREEN)
    else:
        page.row("~", f"body: {size}, was {format_size(len(before.body))}", YELLOW)
    _add_data(page, body)


def _add_data(page: Page, data: bytes) -> None:
    """Text line by line, other data as its first bytes."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        page.row(" ", f"| {data[:24].hex(' ')}{' …' if len(data) > 24 else ''}")
        return
    lines = text.splitlines()
    for line in lines[:_MOST_LINES]:
        page.row(" ", f"| {shown(line, most=_LONGEST)}", indent=4)
    if len(lines) > _MOST_LINES:
        page.row(" ", f"| and {len(lines) - _MOST_LINES} more lines (--json has all)")


def _add_conversation(page: Page, found: Conversation) -> None:
    if found.failure is not None:
        page.add("Connection", "closed: the module failed", RED)
        _add_failure(page, found.failure)
    elif found.is_held:
        page.add("Connection", "the filter never let Envoy connect to the service")
    elif found.is_closed:
        page.add("Connection", "closed by the filter")
    else:
        page.add(
            "Connection",
            "passed to the service" + ("" if found.is_filtered else " without the filter"),
        )
    for label, data in (("To service", found.to_service), ("To client", found.to_client)):
        page.add(label, format_size(len(data)))
        _add_data(page, data)


def _add_log(page: Page, log: Sequence[LogLine]) -> None:
    for number, line in enumerate(log):
        level = line.level.name.lower()
        text = f"{level:<8} {shown(line.message, most=_LONGEST)}"
        page.add("Log" if number == 0 else "", text, _LEVEL_COLOURS.get(line.level, ""), indent=9)


def _add_metrics(page: Page, metrics: Sequence[Metric]) -> None:
    for number, metric in enumerate(metrics):
        value = metric.recorded if metric.type is MetricType.HISTOGRAM else metric.value
        kind = metric.type.name.lower()
        page.add("Metrics" if number == 0 else "", f"{shown(metric.name)} {value} ({kind})")


def _add_callout(page: Page, label: str, callout: Callout) -> None:
    answer = callout.answer
    if answer is None:
        said = f"no such cluster here; --call {shown(callout.cluster)}=FILE answers the call"
    elif isinstance(answer, Broken):
        said = "the connection breaks"
    elif isinstance(answer, GrpcAnswer):
        said = f"gRPC status {answer.status}, messages: {len(answer.messages)}"
    else:
        said = f"{answer.status}"
    page.add(label, f"{callout_line(callout)} -> {said}")


def _asked(result: RunResult) -> tuple[str, ...]:
    """The properties that only the user's Envoy knows; without clusters that do not exist here, which `Callouts` has."""
    verdict = result.start.verdict
    passed = result.exchange or result.conversation
    asked = (*(verdict.asked if verdict is not None else ()), *(passed.doubts if passed else ()))
    return tuple(dict.fromkeys(each for each in asked if not each.startswith("the cluster ")))


def _summary(data: bytes) -> str:
    size = format_size(len(data))
    text = shown(data, most=60)
    return f"{size}: {text}" if data else "empty"
