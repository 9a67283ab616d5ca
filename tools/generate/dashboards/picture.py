"""docs/pictures/dashboard.svg: the main panels, drawn from the data of a run's Prometheus. `make picture`.

Not drawn by Grafana. Invariant: the queries are the dashboard's, and only measured values are drawn.
"""

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import pictures
from tests.chaos import alert_faults, alerting
from tests.parts.prometheus import Prometheus
from tools.generate.dashboards.grafana import COLOURS, STATUS
from tools.generate.dashboards.panels import ROWS
from tools.generate.dashboards.queries import Panel

_WIDTH, _HEIGHT, _COLUMNS = 520, 360, 2
_SHADES = {
    "green": "#1a8a5a",
    "blue": "#2f6fd6",
    "orange": "#d98e04",
    "red": "#d1242f",
    "purple": "#8a5cc7",
    "text": "#708090",
}
"""Grafana's names of colours."""
_ALIKE = {"#d1242f": "#c2410c", "#d98e04": "#b58900"}
"""Shades, and the colour of a chart that is hard to distinguish from them."""
_UNITS = {"s": "seconds", "bytes": "MiB", "reqps": "per second", "ops": "per second", "short": ""}
_SCALES = {"bytes": 1024.0 * 1024.0}
_STEP = 2
"""Seconds between two points."""
_Point = tuple[float, float | None]
SHOWN = (
    "AutoWasms by phase",
    "Failed fetches by reason",
    "Responses to sidecars",
    "Blob requests by cache result",
    "Envoy: module loads",
    "Envoy: requests failed by a filter",
    "Blob store",
    "Event loop",
)


def _shown() -> list[Panel]:
    every = {panel.title: panel for panels in ROWS.values() for panel in panels}
    return [every[title] for title in SHOWN]


async def _keep(data: Path, server: Prometheus, begin: float, end: float) -> None:
    """Write the data of the panels to `data` as JSON."""
    measured: dict[str, list[Any]] = {}
    for panel in _shown():
        for number, query in enumerate(panel.queries):
            text = alerting.queries()[f"{panel.title} {chr(ord('A') + number)}"]
            found = await server.series(text, begin, end, _STEP)
            measured.setdefault(panel.title, []).append([query.legend, found])
    await asyncio.to_thread(data.write_text, json.dumps({"begin": begin, "panels": measured}))


def measure(data: Path) -> None:
    """All faults, one after the other, so that one picture shows them; the data of the panels goes to `data`."""
    with tempfile.TemporaryDirectory() as folder:
        groups = alert_faults.GROUPS.values()
        asyncio.run(alert_faults.run(Path(folder), *groups, then=partial(_keep, data)))


def draw(data: Path, target: Path) -> None:
    """The picture of the data in `data`."""
    pygal = pictures.load_pygal()
    measured: dict[str, Any] = json.loads(data.read_text())
    parts = []
    for place, panel in enumerate(_shown()):
        # Only the y axis has the values; a scale of 1 keeps values near 0 at the bottom.
        series = _series(measured["panels"].get(panel.title, []), measured["begin"], panel.unit)
        highest = max((value or 0.0 for _, points in series for _, value in points), default=0.0)
        steps = pictures.ticks(highest)
        chart = pygal.XY(
            style=pygal.style.CleanStyle(
                font_family="sans-serif",
                background="transparent",
                plot_background="transparent",
                colors=_colours([name for name, _ in series]),
                **pictures.TEXT,
            ),
            css=["file://style.css", "file://graph.css", pictures.THEME],
            js=[],
            width=_WIDTH,
            height=_HEIGHT,
            range=(0, steps[-1]),
            y_labels=[{"value": step, "label": f"{step:g}"} for step in steps],
            x_title="seconds",
            title=panel.title,
            y_title=_UNITS.get(panel.unit, panel.unit),
            show_dots=False,
            allow_interruptions=True,
            legend_at_bottom=True,
            legend_at_bottom_columns=2,
            legend_box_size=10,
            truncate_legend=28,
            margin_bottom=40,
            disable_xml_declaration=True,
        )
        chart.uuid = f"panel-{place}"  # the same one for each drawing
        for name, points in series:
            chart.add(name, points)
        row, column = divmod(place, _COLUMNS)
        corner = (
            f'<svg x="{column * _WIDTH}" y="{row * _HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        )
        parts.append(chart.render(is_unicode=True).replace("<svg ", corner, 1))
    rows = -(-len(parts) // _COLUMNS)
    size = f'viewBox="0 0 {_COLUMNS * _WIDTH} {rows * _HEIGHT}"'
    body = "\n".join(parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{body}\n</svg>\n')


def _colours(names: Sequence[str]) -> list[str]:
    """The dashboard's colours, if it gives the name one; the others are free."""
    fixed = {name: _SHADES.get(_fixed(name)) for name in names}
    taken = {*fixed.values(), *(_ALIKE.get(colour or "", "") for colour in fixed.values())}
    free = iter(colour for colour in pictures.COLOURS if colour not in taken)
    return [fixed[name] or next(free) for name in names]


def _fixed(name: str) -> str:
    statuses = (colour for status, colour in STATUS.items() if re.search(f" {status}$", name))
    return COLOURS.get(name) or next(statuses, "")


def _name(legend: str, labels: Mapping[str, str]) -> str:
    """The legend with each `{{label}}` replaced, as Grafana does it."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend)


def _series(queries: list[Any], begin: float, unit: str) -> list[tuple[str, list[_Point]]]:
    """Curves by their legends; those with the highest values first, at most as many as there are colours."""
    found: list[tuple[str, list[_Point]]] = []
    for legend, series in queries:
        for one in series:
            name = _name(legend, one["metric"])
            points: list[_Point] = []
            for at, value in one["values"]:
                if value == "NaN":
                    continue
                second = float(at) - begin
                if points and second - points[-1][0] > 1.5 * _STEP:
                    points.append((second, None))  # nothing was measured: nothing is drawn
                points.append((second, float(value) / _SCALES.get(unit, 1.0)))
            if points:
                found.append((name, points))
    found.sort(key=lambda curve: -max(value or 0.0 for _, value in curve[1]))
    return found[: len(pictures.COLOURS)]


if __name__ == "__main__":
    _data, _target = map(Path, sys.argv[1:])
    measure(_data)
    draw(_data, _target)
