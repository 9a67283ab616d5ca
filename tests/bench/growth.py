"""Growth of a controller's state and watches, with 100 to 10 000 AutoWasms and 1 000 to 100 000 Pods.

Each size has a process of its own, without a network (`growing.py`). The exponent is that of the power law that fits best: 1 is
linear, 0 is no growth. Memory and lists have a part that does not depend on the size, so their exponent is that of the increase
over the smallest size. Time until AutoWasms are `Synced` at a real API server is in the row `reconcile`.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from statistics import median

from tests.bench import measure
from tests.bench.plan import Plan
from tests.bench.table import Chart, Figure, Result, at_most

_AUTOWASMS, _PODS = (100, 1_000, 5_000, 10_000), (1_000, 10_000, 100_000)
_FIXED_AUTOWASMS, _FIXED_PODS = 1_000, 10_000
_MIB = 1 << 20
_ADDED = frozenset({"settle", "memory", "relist"})
_WHAT = (
    ("settle", "lists read and indexed, processor", "s", 1.0, 1.15),
    ("memory", "memory above the start", "MiB", 1 / _MIB, 1.1),
    ("relist", "lists read again, nothing changed, processor", "s", 1.0, 1.15),
    ("event", "one Pod event, processor", "µs", 1.0, 0.2),
    ("change", "one AutoWasm changed, processor", "µs", 1.0, 0.2),
    ("idle", "idle, processor", "% of a core", 100.0, None),
)
"""Name, text, unit, factor, and the largest exponent."""

Point = dict[str, list[float]]


async def run(plan: Plan) -> Result:
    """Each size in its own process."""
    small = plan.small
    autowasms = (100, 200, 400) if small else _AUTOWASMS
    pods = (200, 400, 800) if small else _PODS
    fixed_autowasms, fixed_pods = (100, 200) if small else (_FIXED_AUTOWASMS, _FIXED_PODS)
    sizes = dict.fromkeys(
        [(one, fixed_pods) for one in autowasms] + [(fixed_autowasms, one) for one in pods]
    )
    points: dict[tuple[int, int], Point] = {size: {} for size in sizes}
    for _ in range(plan.repeats):
        for (one, other), point in points.items():
            command = [
                *measure.pinned(measure.SERVER_CPU),
                sys.executable,
                "-m",
                "tests.bench.growing",
            ]
            found = await measure.json_of([*command, "--autowasms", str(one), "--pods", str(other)])
            for name, value in found.items():
                point.setdefault(name, []).append(value)
    by_autowasms = [points[one, fixed_pods] for one in autowasms]
    by_pods = [points[fixed_autowasms, one] for one in pods]
    figures = [
        *_figures(f"{autowasms[-1]} AutoWasms, {fixed_pods} Pods", by_autowasms[-1]),
        *_figures(f"{fixed_autowasms} AutoWasms, {pods[-1]} Pods", by_pods[-1]),
        *_exponents("AutoWasms", autowasms, by_autowasms),
        *_exponents("Pods", pods, by_pods),
    ]
    grown = {"AutoWasms": (autowasms, by_autowasms), "Pods": (pods, by_pods)}
    return Result(figures, charts(grown))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the line through the logarithms, by least squares."""
    xs, ys = [math.log(size) for size in sizes], [math.log(value) for value in values]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((one - x) * (other - y) for one, other in zip(xs, ys, strict=True))
    return above / sum((one - x) ** 2 for one in xs)


def added_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent of the increase of each size over the first. Not a number if there is no increase at one of them."""
    added = [value - values[0] for value in values[1:]]
    if min(added) <= 0:
        return math.nan
    return exponent([size - sizes[0] for size in sizes[1:]], added)


def _exponent(name: str, sizes: Sequence[float], values: Sequence[float]) -> float:
    return (added_exponent if name in _ADDED else exponent)(sizes, values)


def _figures(size: str, point: Point) -> list[Figure]:
    return [
        Figure(f"{size}: {text}", unit, [factor * value for value in point[name]])
        for name, text, unit, factor, _ in _WHAT
    ]


def _exponents(axis: str, sizes: Sequence[int], points: Sequence[Point]) -> list[Figure]:
    """The exponents over the axis, each with one value for each repeat."""
    found = []
    for name, text, _, _, most in _WHAT:
        if most is None:
            continue
        runs = zip(*(point[name] for point in points), strict=True)
        slopes = [_exponent(name, sizes, values) for values in runs]
        known = [slope for slope in slopes if not math.isnan(slope)]
        if known:
            found.append(Figure(f"exponent over {axis}: {text}", "", known, budget=at_most(most)))
    return found


def charts(grown: Mapping[str, tuple[Sequence[int], Sequence[Point]]]) -> list[Chart]:
    """One chart for each measure, on which a straight line is linear growth. `grown`: by growing resource, the sizes and their points."""
    return [_chart(name, text, unit, factor, grown) for name, text, unit, factor, _ in _WHAT]


def _chart(
    name: str,
    text: str,
    unit: str,
    factor: float,
    grown: Mapping[str, tuple[Sequence[int], Sequence[Point]]],
) -> Chart:
    """AutoWasms and Pods have different numbers, so each size is given as a share of the largest of its kind."""
    shares = sorted({size / sizes[-1] for sizes, _ in grown.values() for size in sizes})
    series: dict[str, list[float | None]] = {}
    for what, (sizes, points) in grown.items():
        values = [factor * median(point[name]) for point in points]
        slope = _exponent(name, sizes, values)
        fitted = "" if math.isnan(slope) else f", exponent {slope:.2f}"
        known = dict(zip([size / sizes[-1] for size in sizes], values, strict=True))
        series[f"{sizes[0]} to {sizes[-1]} {what}{fitted}"] = [known.get(one) for one in shares]
    labels = [f"{100 * share:g}" for share in shares]
    return Chart(
        f"growth-{name}",
        text[0].upper() + text[1:],
        unit,
        labels,
        series,
        kind="line",
        label_unit="% of the largest number",
    )
