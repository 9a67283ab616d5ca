"""The text of `wasmc rollout`: the block on a terminal, one line for pipes, what happens next, the history. Pure.

Invariants: on a terminal, no line of a block or of the history is wider than requested, or than `MAX_WIDTH`, and a block has no more
lines than requested, so it can be redrawn in place; with the width `UNWRAPPED`, for a pipe, nothing is wrapped, cut or left out; text
from the cluster is escaped; a line for pipes has no figures and no times, so it changes only when something happens.
"""

import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import UNSET

from autowasm.api.staged import Variants
from autowasm.api.status import (
    MAX_PER_POD,
    Module,
    RolloutPhase,
    RolloutStatus,
    RolloutVariant,
    RolloutVerdict,
    StepUnit,
)
from autowasm.api.v1alpha1 import Rollout
from autowasm.cli.rolloutview import Outcome, RolloutView
from autowasm.cli.stdio import UNWRAPPED, fitted
from autowasm.controller.rollout.judgement import MIN_REQUESTS, RolloutReason
from autowasm.kube.resources import ObjectKey
from autowasm.net.urls import redact
from autowasm.text import shown
from autowasm.units import format_duration, parse_duration

MAX_WIDTH: Final = 80
MIN_WIDTH: Final = 40
MAX_LINES: Final = 24
MIN_LINES: Final = 10
_NARROW: Final = 60
"""Columns of a terminal that has no room for long rows."""
_LABEL: Final = 12
_LONGEST: Final = 2_048


@dataclass(frozen=True, slots=True)
class _Room:
    """Lines for parts of a block. If there are more steps, those around the current one are shown."""

    steps: int
    row: int
    """For each row with a label."""
    message: int
    pods: int
    """Pods whose requests are shown, one per line."""
    rows: int = 99
    """For all rows."""
    has_blanks: bool = True


_ROOMS: Final = (
    _Room(7, 3, 4, 5),
    _Room(5, 2, 3, 3),
    _Room(3, 1, 2, 2, has_blanks=False),
    _Room(1, 1, 1, 0, rows=4, has_blanks=False),
)
_ALL: Final = _Room(1_000, 1, 1, 1_000, rows=1_000)
"""Of a pipe."""
_COLOURS: Final = {
    RolloutPhase.PROGRESSING: "36",
    RolloutPhase.PAUSED: "33",
    RolloutPhase.SUCCEEDED: "32",
    RolloutPhase.ABORTED: "31",
}


def command(verb: str, key: ObjectKey) -> str:
    """A command line for the user."""
    more = ["-w"] if verb == "status" else []
    return shlex.join(["wasmc", "rollout", verb, key.name, "-n", key.namespace, *more])


def block(
    view: RolloutView,
    *,
    width: int,
    height: int = MAX_LINES,
    colour: bool = False,
    ahead: float = 0.0,
) -> str:
    """The whole state, in at most `height` lines if these are `MIN_LINES` or more.

    `ahead`: seconds since wasmer wrote the figures of the rollout that the command follows.
    """
    width = fitted(width, least=MIN_WIDTH, most=MAX_WIDTH)
    if width >= UNWRAPPED:
        return "\n".join(_block(view, _ALL, width=width, colour=colour, ahead=ahead))
    height = max(MIN_LINES, min(height, MAX_LINES))
    for room in _ROOMS:
        lines = _block(view, room, width=width, colour=colour, ahead=ahead)
        if len(lines) <= height:
            break
    return "\n".join(lines)


def _block(
    view: RolloutView, room: "_Room", *, width: int, colour: bool, ahead: float
) -> list[str]:
    rollout = view.rollout
    lines: list[str] = []
    if rollout is None or not view.is_current:
        lines += _wrapped(f"AutoWasm {view.key}: {_not_begun(view)}", width, most=room.message)
    if rollout is not None:
        lines += _of_rollout(view, rollout, room, width=width, colour=colour, ahead=ahead)
    return lines


def _not_begun(view: RolloutView) -> str:
    message = f": {shown(view.status.message, most=_LONGEST)}" if view.status.message else ""
    return f"the rollout of generation {view.generation} has not begun ({view.status.phase.value}{message})"


def _of_rollout(
    view: RolloutView,
    rollout: RolloutStatus,
    room: _Room,
    *,
    width: int,
    colour: bool,
    ahead: float,
) -> list[str]:
    phase, blank = rollout.phase.value, [""] if room.has_blanks else []
    head = f"AutoWasm {view.key}: " if view.is_current else ""
    generation = rollout.target.generation
    lines = _wrapped(f"{head}{phase}, {_where(rollout)}, generation {generation}", width, most=2)
    if colour:
        painted = f"\x1b[{_COLOURS[rollout.phase]}m{phase}\x1b[0m"
        lines[0] = lines[0].replace(f"{head}{phase}", f"{head}{painted}", 1)
    if rollout.phase is not RolloutPhase.SUCCEEDED:  # a promoted filter has skipped steps
        lines += [*blank, *_steps(view, rollout, width, most=room.steps)]
    lines += blank
    rows = [*_variants(view, rollout, width), *_per_pod(view, rollout, width, most=room.pods)]
    rows = [*rows, *_pods(view, rollout)]
    rows = [*rows, *_durations(view, rollout, ahead)]
    wrapped = [
        _wrapped(f"  {label:<{_LABEL}}{text}", width, indent=_LABEL + 2, most=room.row)
        for label, text in rows
    ]
    lines += [line for each in wrapped for line in each][: room.rows]
    lines += blank
    if rollout.message and rollout.reason != RolloutReason.PAUSED_BY_COMMAND.value:
        lines += _wrapped(_said(rollout), width, most=room.message)
    if (advice := next_of(view)) and rollout.phase is not RolloutPhase.PROGRESSING:
        lines += _wrapped(f"-> {advice}", width, indent=3, most=room.message)
    return lines


def _where(rollout: RolloutStatus) -> str:
    if rollout.phase is RolloutPhase.SUCCEEDED:
        return "all Pods"
    return f"step {rollout.step} of {rollout.steps}"


def _steps(view: RolloutView, rollout: RolloutStatus, width: int, *, most: int) -> list[str]:
    sizes = _sizes(view, rollout)
    first = max(1, min(rollout.step - most // 2, rollout.steps - most + 1))
    last = min(rollout.steps, first + most - 1)
    lines = []
    for number in range(first, last + 1):
        state = _state_of(number, rollout)
        more = "  …" if number in {first, last} and number not in {1, rollout.steps} else ""
        lines.append(f"  step {number:<3} {sizes[number - 1]:<9} {state}{more}".rstrip()[:width])
    return lines


def _sizes(view: RolloutView, rollout: RolloutStatus) -> list[str]:
    """The size of each step, as in the spec; empty if the rollout belongs to another spec."""
    spec = view.spec if view.is_current else None
    if spec is None or len(spec.steps) + 1 != rollout.steps:
        return [""] * (rollout.steps - 1) + ["all Pods"]
    return [*(_size(step) for step in spec.steps), "all Pods"]


def _size(step: int | str) -> str:
    return _pods_text(step) if isinstance(step, int) else step


def _pods_text(count: int) -> str:
    return f"{count} Pod" if count == 1 else f"{count} Pods"


def _state_of(number: int, rollout: RolloutStatus) -> str:
    if number < rollout.step:
        return "passed"
    if number > rollout.step:
        return ""
    if rollout.phase is RolloutPhase.ABORTED:
        return "aborted here"
    paused = ", paused" if rollout.phase is RolloutPhase.PAUSED else ""
    return f"{_proven(rollout) or 'has begun'}{paused}"


def _proven(rollout: RolloutStatus) -> str:
    verdict = rollout.verdict
    if verdict is UNSET:
        return ""
    return f"{verdict.proven} of {verdict.pods} Pods proven"


_Row = tuple[str, str]
"""Label and text."""


def _variants(view: RolloutView, rollout: RolloutStatus, width: int) -> Iterable[_Row]:
    """Both filters, with the requests of their Pods since the step began."""
    verdict = rollout.verdict
    yield "new", _variant(rollout.target, width)
    if verdict is not UNSET:
        yield "", _failed(verdict.failures, verdict.requests)
        if verdict.is_by_time and rollout.phase is not RolloutPhase.ABORTED:
            yield "", "for Pods with few requests or no statistics, only the time counts"
    if rollout.stable is not UNSET:
        yield "previous", _variant(rollout.stable, width)
    elif rollout.phase is not RolloutPhase.SUCCEEDED:
        yield "previous", "no filter"
    if verdict is not UNSET and verdict.stable_requests:
        label = "" if rollout.stable is not UNSET else "previous"
        failed = _failed(verdict.stable_failures, verdict.stable_requests)
        yield label, f"{failed}{_limit(view.spec, verdict)}"


def _variant(variant: RolloutVariant, width: int) -> str:
    text = f"filter {variant.digest}"
    if variant.module is UNSET:
        return text
    return f"{_end_of(_source(variant.module), width - _LABEL - len(text) - 4)}, {text}"


def _source(module: Module) -> str:
    """The image with its tag, or the URL, without a query."""
    kind, _, rest = module.source.partition(":")
    return shown(redact(rest) if kind == "object" else rest, most=_LONGEST)


def _end_of(text: str, most: int) -> str:
    """The end of a name is the most informative part: the repository and its tag."""
    return text if len(text) <= most else f"…{text[len(text) - most + 1 :]}"


def _failed(failures: int, requests: int) -> str:
    if not requests:
        return "no requests"
    return f"{failures} of {requests} requests failed ({failures / requests:.2%})"


def _per_pod(view: RolloutView, rollout: RolloutStatus, width: int, *, most: int) -> Iterable[_Row]:
    """The requests of each Pod of the step, worst first. A single Pod has the same requests as the new filter."""
    verdict = rollout.verdict
    if verdict is UNSET or len(verdict.per_pod) < 2 or rollout.phase is RolloutPhase.SUCCEEDED:
        return
    found = verdict.per_pod
    shown_all = len(found) <= most and max(len(found), verdict.pods) <= MAX_PER_POD
    for number, one in enumerate(found[:most]):
        label = "" if number else ("each Pod" if shown_all else "worst Pods")
        ratio = f"{one.failures / one.requests:.2%}" if one.requests else "-"
        text = f"{ratio:>7} "
        if width > _NARROW:
            text += f"{one.failures:>5} of {one.requests:<8} "
        name = shown(one.pod.removeprefix(f"{view.key.namespace}/"), most=_LONGEST)
        yield label, text + _end_of(name, width - _LABEL - 2 - len(text))


def _pods(view: RolloutView, rollout: RolloutStatus) -> Iterable[_Row]:
    total = f" of {view.pods}" if view.pods is not None else ""
    if rollout.by is not StepUnit.POD and rollout.groups:
        names = [f"{one.namespace}/{one.name}".lstrip("/") for one in rollout.groups]
        kind = f"{rollout.by.value.lower()}s".capitalize()
        yield kind, _listed(names)
    if rollout.pods:
        names = [
            one.name if one.namespace == view.key.namespace else f"{one.namespace}/{one.name}"
            for one in rollout.pods
        ]
        yield "Pods", f"{len(names)}{total}: {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(shown(name, most=_LONGEST) for name in names)


def _limit(spec: Rollout | None, verdict: RolloutVerdict) -> str:
    """The limit, if the status has all of its inputs (`judgement._limit`)."""
    if spec is None or verdict.stable_requests < MIN_REQUESTS:
        return ""
    limit = verdict.stable_failures / verdict.stable_requests + spec.max_failure_ratio
    return f", so the limit is {limit:.2%}"


def _durations(view: RolloutView, rollout: RolloutStatus, ahead: float) -> Iterable[_Row]:
    if rollout.phase is not RolloutPhase.PROGRESSING:
        return
    spec = view.spec if view.is_current else None
    is_healthy = bool(rollout.healthy_since)
    if is_healthy:
        seconds = rollout.healthy_seconds + ahead
        yield "healthy", _time(seconds, spec.pause if spec else None, "must stay so for")
    seconds = rollout.waited_seconds + (0.0 if is_healthy else ahead)
    if seconds >= 1 or not is_healthy:
        yield "unhealthy", _time(seconds, spec.deadline if spec else None, "aborts after")


def _time(seconds: float, of: str | None, words: str) -> str:
    most = parse_duration(of) if of is not None else None
    passed = format_duration(float(int(min(seconds, most) if most is not None else seconds)))
    return f"for {passed}, {words} {format_duration(most)}" if most is not None else f"for {passed}"


def _said(rollout: RolloutStatus) -> str:
    """The reason and the message, each once."""
    message = shown(rollout.message, most=_LONGEST)
    silent = {"", RolloutReason.PAUSE.value}
    if rollout.reason in silent or rollout.phase is RolloutPhase.SUCCEEDED:
        return message
    return f"{shown(rollout.reason)}: {message}"


def line(view: RolloutView) -> str:
    """One line for a pipe."""
    rollout = view.rollout
    if rollout is None or not view.is_current:
        return _not_begun(view)
    said, head = _said(rollout), f"step {rollout.step} of {rollout.steps}"
    proven = _proven(rollout)
    if rollout.reason == RolloutReason.PAUSED_BY_COMMAND.value:
        return f"Paused in {head}"
    if rollout.phase is not RolloutPhase.PROGRESSING:
        return f"{rollout.phase.value}: {said}"
    if not rollout.message.startswith(head):
        said = f"{head}: {said}" if said else head
    return f"{rollout.phase.value}: {said}{f' ({proven})' if proven else ''}"


def as_json(view: RolloutView) -> dict[str, Any]:
    """The rollout as in the status; keys in a fixed order."""
    rollout = view.rollout
    return {
        "namespace": view.key.namespace,
        "name": view.key.name,
        "generation": view.generation,
        "isCurrent": view.is_current,
        "rollout": msgspec.to_builtins(rollout) if rollout is not None else None,
    }


def next_of(view: RolloutView) -> str:
    """The next event, or the commands that the user can give."""
    rollout, key = view.rollout, view.key
    if rollout is None or view.outcome is Outcome.SUCCEEDED:
        return ""
    match rollout.phase:
        case RolloutPhase.PROGRESSING:
            return f"follow it: {command('status', key)}"
        case RolloutPhase.PAUSED if rollout.reason == RolloutReason.STABLE_LOST.value:
            return f"give all Pods the new filter: {command('promote', key)}; or change the spec"
        case RolloutPhase.PAUSED:
            return f"continue: {command('resume', key)}; return all Pods to the previous filter: {command('abort', key)}"
        case RolloutPhase.ABORTED if view.is_current:
            return f"change the spec, or try the same again: {command('retry', key)}"
        case _:
            return ""


def done(verb: str, view: RolloutView) -> str:
    """The effect of a command that wasmer has carried out, and what happens next."""
    rollout, key = view.rollout, view.key
    if rollout is None:
        return ""
    step = f"step {rollout.step} of {rollout.steps}"
    match verb:
        case "pause":
            text = f"paused in {step}: the Pods keep the filters that they have"
        case "resume":
            text = f"continues in {step}, with a new deadline"
        case "promote":
            text = "all Pods get the new filter now. To go back, put the previous source into the spec; its module is in"
            return f"AutoWasm {key}: {text}\n{command('history', key)}"
        case "abort":
            back = "the previous filter" if rollout.stable is not UNSET else "no filter"
            text = f"aborted: all Pods get {back}, and wasmer does not try this generation again by itself"
        case _:
            text = f"begins again: {step}"
    advice = next_of(view)
    return f"AutoWasm {key}: {text}" + (f"\n{advice}" if advice else "")


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: str
    generation: int
    sha256: str
    state: str


def history(view: RolloutView, live: Variants | None, *, width: int) -> str:
    """Filters, newest first, and modules, newest first. `live` None: there is no EnvoyFilter, or it cannot be read."""
    width = fitted(width, least=MIN_WIDTH, most=MAX_WIDTH)
    digits = 64 if width >= UNWRAPPED else 12  # of a digest
    lines = [f"AutoWasm {view.key}"]
    if entries := _entries(view, live):
        lines += ["", f"FILTER            GENERATION  {'MODULE':<{digits}}  STATE"]
        for one in entries:
            generation = str(one.generation or "?")
            lines += _wrapped(
                f"{shown(one.digest, most=16):<18}{generation:<12}{one.sha256[:digits]:<{digits}}  {one.state}",
                width,
                indent=44 if width > _NARROW else 2,
                most=3,
            )
    if modules := view.status.history:
        lines += ["", f"{'MODULE':<{digits}}  FETCHED               SOURCE"]
        for module in modules:
            lines += _wrapped(
                _module(module, digits), width, indent=36 if width > _NARROW else 2, most=4
            )
        lines += ["", *_wrapped(_BACK, width, most=3)]
    return "\n".join(line[:width] for line in lines)


_BACK: Final = "To go back, set the source of the spec to the one of that module; wasmer needs no registry for a module that it still has."


def history_json(view: RolloutView, live: Variants | None) -> dict[str, Any]:
    """The rows of `history`; keys in a fixed order."""
    filters = [
        {
            "digest": one.digest,
            "generation": one.generation or None,
            "module": one.sha256 or None,
            "state": one.state,
        }
        for one in _entries(view, live)
    ]
    return {
        "namespace": view.key.namespace,
        "name": view.key.name,
        "filters": filters,
        "modules": msgspec.to_builtins(view.status.history),
    }


def _entries(view: RolloutView, live: Variants | None) -> list[_Entry]:
    """Each filter once, with all its facts."""
    found: dict[tuple[str, int], tuple[str, list[str]]] = {}
    rollout = view.rollout

    def note(variant: RolloutVariant, state: str) -> None:
        module = variant.module.sha256 if variant.module is not UNSET else ""
        known, states = found.get((variant.digest, variant.generation), ("", []))
        found[variant.digest, variant.generation] = (known or module, [*states, state])

    if rollout is not None:
        note(rollout.target, _TARGET[rollout.phase])
        if rollout.stable is not UNSET:
            some = rollout.phase in {RolloutPhase.PROGRESSING, RolloutPhase.PAUSED}
            who = "all other Pods have it" if some else "all Pods have it"
            note(rollout.stable, f"previous: {who}")
        for one in rollout.aborted:
            if one.digest != rollout.target.digest:
                note(one, "aborted")
    placed = (live.base, live.override) if live is not None else ()
    for variant in placed:
        if variant is None:
            continue
        same = [each for each in found if each[0] == variant.digest]
        for digest, generation in same:
            module, states = found[digest, generation]
            found[digest, generation] = (module or variant.sha256, states)
        if not same:
            found[variant.digest, 0] = (variant.sha256, ["in the EnvoyFilter"])
    return [
        _Entry(digest, generation, module, "; ".join(states))
        for (digest, generation), (module, states) in found.items()
    ]


_TARGET: Final = {
    RolloutPhase.PROGRESSING: "new: being rolled out",
    RolloutPhase.PAUSED: "new: the rollout is paused",
    RolloutPhase.SUCCEEDED: "all Pods have it",
    RolloutPhase.ABORTED: "new: aborted",
}


def _module(module: Module, digits: int) -> str:
    return f"{module.sha256[:digits]:<{digits}}  {module.fetched_at or '?':<22}{_source(module)}"


def _wrapped(text: str, width: int, *, indent: int = 0, most: int) -> list[str]:
    """At most `most` lines; `…` marks omitted text."""
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * min(indent, width // 2),
        break_long_words=True,
        break_on_hyphens=False,
        max_lines=most,
        placeholder=" …",
        drop_whitespace=True,
        replace_whitespace=False,
    )
