"""Figures of a row, and how they are printed and kept.

Invariant: a ratio is of medians of runs that took turns; without a rival there is none.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: what was measured, in which unit, ours, the rival's, and the target in words."""

    name: str
    unit: str
    ours: Sequence[float]
    rival: str = ""
    theirs: Sequence[float] = field(default=())
    target: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours to theirs."""
        return median(self.ours) / median(self.theirs) if self.theirs else None

    @property
    def noise(self) -> float:
        """How far apart runs of the same are: (max - min) / median, the worse of both."""
        runs = [one for one in (self.ours, self.theirs) if len(one) > 1 and median(one)]
        return max(((max(one) - min(one)) / median(one) for one in runs), default=0.0)


def show(figures: Sequence[Figure]) -> str:
    """A table that fits a terminal."""
    lines = [f"{'what':<44} {'ours':>22} {'rival':>22} {'ratio':>6}  target"]
    for one in figures:
        ratio = f"{one.ratio:.2f}" if one.ratio is not None else ""
        theirs = _spread(one.theirs) if one.theirs else ""
        name = f"{one.name} ({one.unit})"
        note = "  [noisy: runs differ by half or more]" if one.noise >= 0.5 else ""
        lines.append(
            f"{name:<44} {_spread(one.ours):>22} {theirs:>22} {ratio:>6}  {one.target}{note}"
        )
    lines.append("Figures are median (min-max) of the runs.")
    return "\n".join(lines)


def keep(figures: Sequence[Figure], path: Path) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = [asdict(one) | {"ratio": one.ratio, "noise": one.noise} for one in figures]
    path.write_text(json.dumps(document, indent=1) + "\n")


def _spread(runs: Sequence[float]) -> str:
    return f"{median(runs):.4g} ({min(runs):.4g}-{max(runs):.4g})"
