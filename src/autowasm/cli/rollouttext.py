"""A staged rollout as text for a terminal. Pure.

Invariants: no line is wider than the terminal; names from the cluster are escaped before they are printed.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from msgspec import UNSET

from autowasm.api.status import RolloutPhase, RolloutStatus, RolloutVariant, RolloutVerdict, Status
from autowasm.api.v1alpha1 import AutoWasm, Rollout
from autowasm.text import shown
from autowasm.units import format_duration

MIN_WIDTH: Final = 40
MAX_WIDTH: Final = 100
_LABEL: Final = 12
_NAMED: Final = 8
"""Pods that the view names."""
_LONGEST: Final = 600
_COLOURS: Final = {
    RolloutPhase.PROGRESSING: "36",
    RolloutPhase.PAUSED: "33",
    RolloutPhase.SUCCEEDED: "32",
    RolloutPhase.ABORTED: "31",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What a view is made of. `autowasm` None: its spec is invalid."""

    name: str
    """`namespace/name`."""
    autowasm: AutoWasm | None
    status: Status
    generation: int

    @property
    def rollout(self) -> RolloutStatus | None:
        """None: there was none yet."""
        return self.status.rollout if self.status.rollout is not UNSET else None

    @property
    def is_current(self) -> bool:
        """Whether the rollout is of the spec as it is now."""
        return self.rollout is not None and self.rollout.target.generation == self.generation


def headline(one: Shown) -> str:
    """One line: what `kubectl rollout status` would say."""
    rollout = one.rollout
    if rollout is None:
        return f"{one.name}: no staged rollout yet ({shown(one.status.message or one.status.phase.value, most=_LONGEST)})"
    if not one.is_current:
        return f"{one.name}: waiting for wasmer to begin the rollout of generation {one.generation}"
    match rollout.phase:
        case RolloutPhase.SUCCEEDED:
            return f"{one.name}: rolled out to all Pods"
        case RolloutPhase.ABORTED:
            return f"{one.name}: aborted: {shown(rollout.message, most=_LONGEST)}"
        case _:
            verdict = rollout.verdict if rollout.verdict is not UNSET else RolloutVerdict()
            proven = f"{verdict.proven} of {verdict.pods} Pods proven" if verdict.pods else ""
            parts = [f"step {rollout.step} of {rollout.steps}", rollout.phase.value, proven]
            return f"{one.name}: {', '.join(part for part in parts if part)}"


def summary(one: Shown, *, width: int) -> str:
    """The headline, and in parentheses the reason, in as many lines as needed."""
    rollout = one.rollout
    text = headline(one)
    if rollout is not None and rollout.reason and rollout.reason not in text:
        text += f" ({rollout.reason})"
    return "\n".join(_wrapped(text, max(MIN_WIDTH, min(width, MAX_WIDTH)), "  "))


def view(one: Shown, *, width: int, colour: bool) -> list[str]:
    """The headline, the variants, the steps, the Pods, the figures, and what it waits for."""
    width = max(MIN_WIDTH, min(width, MAX_WIDTH))
    rollout = one.rollout
    lines = _wrapped(headline(one), width, "  ")
    if colour and rollout is not None:
        lines[0] = f"\x1b[{_COLOURS[rollout.phase]}m{lines[0]}\x1b[0m"
    if rollout is None:
        return lines
    rows = [("new", _variant(rollout.target))]
    if rollout.stable is not UNSET:
        rows.append(("previous", _variant(rollout.stable)))
    elif rollout.phase is not RolloutPhase.SUCCEEDED:
        rows.append(("previous", "no filter"))
    is_going_on = rollout.phase in {RolloutPhase.PROGRESSING, RolloutPhase.PAUSED}
    if is_going_on:
        spec = one.autowasm.spec.rollout if one.autowasm is not None else None
        rows += _of_step(rollout, spec)
    if rollout.verdict is not UNSET and rollout.phase is not RolloutPhase.SUCCEEDED:
        rows += _figures(rollout.verdict, has_step=is_going_on)
    if rollout.reason and is_going_on:
        rows.append(("waits for", f"{rollout.reason}: {rollout.message}"))
    elif rollout.reason:
        rows.append(("reason", rollout.reason))
    for label, text in rows:
        head = f"  {label:<{_LABEL}}"
        lines += _wrapped(f"{head}{shown(text, most=_LONGEST)}", width, " " * len(head))
    return lines


def _variant(variant: RolloutVariant) -> str:
    text = f"{variant.digest}, generation {variant.generation or 'unknown'}"
    if variant.module is not UNSET:
        source = variant.module.source.partition(":")[2]
        text = f"sha256:{variant.module.sha256[:12]} of {source} ({text})"
    return text


def _of_step(rollout: RolloutStatus, spec: Rollout | None) -> list[tuple[str, str]]:
    steps = [str(step) for step in spec.steps] if spec is not None else []
    rows = []
    if len(steps) + 1 == rollout.steps:
        marked = [
            f"[{step}]" if number == rollout.step else step
            for number, step in enumerate([*steps, "all"], start=1)
        ]
        rows.append(("steps", "  ".join(marked)))
    if rollout.step == rollout.steps:
        rows.append(("Pods", "all"))
    elif rollout.groups:
        names = ", ".join(group.name for group in rollout.groups[:_NAMED])
        more = _more(len(rollout.groups))
        rows.append((f"{rollout.by.value}s", f"{names}{more}"))
    if rollout.pods:
        names = ", ".join(f"{pod.namespace}/{pod.name}" for pod in rollout.pods[:_NAMED])
        rows.append(("Pods", f"{names}{_more(len(rollout.pods))}"))
    if spec is not None:
        healthy = format_duration(round(rollout.healthy_seconds))
        waited = format_duration(round(rollout.waited_seconds))
        rows.append(
            ("healthy", f"{healthy} of {spec.pause}; not healthy {waited} of {spec.deadline}")
        )
    return rows


def _more(count: int) -> str:
    return f" and {count - _NAMED} more" if count > _NAMED else ""


def _figures(verdict: RolloutVerdict, *, has_step: bool) -> list[tuple[str, str]]:
    rows = []
    if has_step:
        rows.append(("proven", f"{verdict.proven} of {verdict.pods} Pods"))
    rows.append(("failed", _ratio(verdict.failures, verdict.requests)))
    rows.append(("others", _ratio(verdict.stable_failures, verdict.stable_requests)))
    if verdict.is_by_time:
        rows.append(("", "some Pods had too few requests, or cannot be read: only the time counts"))
    return rows


def _ratio(failures: int, requests: int) -> str:
    if not requests:
        return "no requests"
    return f"{failures} of {requests} requests ({failures / requests:.2%})"


def history(one: Shown, *, width: int) -> list[str]:
    """The modules that were in place, the newest first, and the filters that were aborted."""
    width = max(MIN_WIDTH, min(width, MAX_WIDTH))
    lines = []
    current = one.status.module.sha256 if one.status.module is not UNSET else ""
    for module in one.status.history:
        mark = "*" if module.sha256 == current else " "
        source = shown(module.source.partition(":")[2], most=_LONGEST)
        when = module.fetched_at or "unknown"
        lines += _wrapped(
            f"{mark} {when:<20}  sha256:{module.sha256[:12]}  {source}", width, " " * 24
        )
    if not lines:
        lines.append("no module was published yet")
    for variant in one.rollout.aborted if one.rollout is not None else ():
        lines += _wrapped(f"  aborted: {_variant(variant)}", width, " " * 4)
    return lines


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        break_long_words=True,
        break_on_hyphens=False,
        drop_whitespace=True,
    ) or [""]


def as_json(one: Shown, document: Mapping[str, Any]) -> dict[str, Any]:
    """The rollout as in the status, with the object's name; keys in a fixed order."""
    found = (document.get("status") or {}).get("rollout")
    return {
        "name": one.name,
        "generation": one.generation,
        "isCurrent": one.is_current,
        "rollout": found,
    }
