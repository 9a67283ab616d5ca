"""Figures of a row: their evaluation, output and storage.

Invariant: a ratio compares alternating runs, pair by pair; without a rival there is none. A budget that lies within
the variation of the runs is neither met nor missed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

Verdict = Literal["", "met", "missed", "too close to tell"]


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of a figure. `of`: whether it limits the ratio to the rival, or our figure alone."""

    limit: float
    kind: Literal["most", "least"]
    of: Literal["ratio", "ours"]

    def __str__(self) -> str:
        sign = "≤" if self.kind == "most" else "≥"
        return f"{sign} {self.limit:g}{'×' if self.of == 'ratio' else ''}"

    def judge(self, runs: Sequence[float]) -> Verdict:
        """One run of several beyond the limit is noise if the median is within it, and vice versa."""
        kept = [one <= self.limit if self.kind == "most" else one >= self.limit for one in runs]
        if all(kept):
            return "met"
        return "missed" if not any(kept) else "too close to tell"


def ratio_at_least(limit: float) -> Budget:
    """Our value must be at least this many times the rival's."""
    return Budget(limit, "least", "ratio")


def ratio_at_most(limit: float) -> Budget:
    """Our value must be at most this many times the rival's."""
    return Budget(limit, "most", "ratio")


def at_most(limit: float) -> Budget:
    """In the figure's unit."""
    return Budget(limit, "most", "ours")


def at_least(limit: float) -> Budget:
    """In the figure's unit."""
    return Budget(limit, "least", "ours")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: name, unit, our value, the rival's, and the budget."""

    name: str
    unit: str
    ours: Sequence[float]
    rival: str = ""
    theirs: Sequence[float] = field(default=())
    budget: Budget | None = None

    @property
    def ratios(self) -> list[float]:
        """Ratios of our value to theirs, of consecutive runs."""
        if len(self.ours) != len(self.theirs):
            return [median(self.ours) / median(self.theirs)] if self.theirs else []
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours / theirs for ours, theirs in pairs if theirs]

    @property
    def ratio(self) -> float | None:
        """The median of the ratios."""
        return median(self.ratios) if self.ratios else None

    @property
    def noise(self) -> float:
        """The variation between runs: (max - min) / median, the larger of ours and theirs."""
        runs = [one for one in (self.ours, self.theirs) if len(one) > 1 and median(one)]
        return max(((max(one) - min(one)) / median(one) for one in runs), default=0.0)

    @property
    def verdict(self) -> Verdict:
        """Whether the budget was kept."""
        if self.budget is None:
            return ""
        runs = self.ratios if self.budget.of == "ratio" else self.ours
        return self.budget.judge(runs) if runs else ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture: one value for each of `labels` in each of `series`. `unit` is that of the values. Labels of a line are numbers.

    `dashed` names the series of a rival or a comparison; `mark` is the value of a rival, with its name.
    """

    name: str
    title: str
    unit: str
    labels: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    kind: Literal["bar", "line"] = "bar"
    label_unit: str = ""
    dashed: Sequence[str] = ()
    mark: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a row. `notes` list measurements that were impossible here, and remarks for readers."""

    figures: Sequence[Figure]
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()


def show(figures: Sequence[Figure]) -> str:
    """A table that fits a wide terminal."""
    head = ("what", "ours", "rival", "ratio", "budget", "")
    lines = [head, *(_line(one) for one in figures)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*rows, "Median (min–max) of the runs; a ratio is the median of the pairs'."])


def _line(one: Figure) -> tuple[str, ...]:
    note = "  [runs differ by half or more]" if one.noise >= 0.5 else ""
    return (
        f"{one.name} ({one.unit})",
        spread(one.ours),
        f"{one.rival} {spread(one.theirs)}" if one.theirs else "",
        f"{one.ratio:.2f}×" if one.ratio is not None else "",
        str(one.budget or ""),
        f"{one.verdict}{note}",
    )


def document(result: Result) -> dict[str, Any]:
    """Everything, for JSON."""
    figures = [
        asdict(one)
        | {
            "budget": str(one.budget or ""),
            "ratio": one.ratio,
            "ratios": one.ratios,
            "noise": one.noise,
            "verdict": one.verdict,
            "shown": _line(one),
        }
        for one in result.figures
    ]
    return {
        "figures": figures,
        "charts": [asdict(one) for one in result.charts],
        "notes": list(result.notes),
    }


def keep(found: Mapping[str, Any], path: Path) -> None:
    """Store the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def spread(runs: Sequence[float]) -> str:
    """Median, minimum and maximum."""
    if len(runs) == 1:
        return _short(runs[0])
    return f"{_short(median(runs))} ({_short(min(runs))}–{_short(max(runs))})"


def middle(runs: Sequence[float]) -> str:
    """The median."""
    return _short(median(runs))


def _short(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.3g}"
