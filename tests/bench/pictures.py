"""Charts as SVG files: no script, and no external font or style sheet, so that a Markdown page can show them.

Both axes of a line are linear, and every axis of values begins at zero. Colours follow the reader's light or dark scheme.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_WIDTH, _HEIGHT = 760, 420
COLOURS: Final = ("#2f6fd6", "#c2410c", "#1a8a5a", "#8a5cc7", "#b58900", "#708090")
"""Legible on a white page and on a dark one."""
TEXT: Final = {
    "title_font_size": 18,
    "label_font_size": 14,
    "major_label_font_size": 14,
    "legend_font_size": 15,
}
"""Sizes that are legible if the picture is as wide as the text of a page."""
THEME: Final = """inline:
svg { color: #1f2328; }
.title, .legends text, .axis text, .axis text.major { fill: currentColor !important; }
.axis .line, .axis .guide.line { stroke: currentColor !important; }
.axis .guide.line { stroke-opacity: .18 !important; stroke-dasharray: none !important; }
.axis.x .guide.line { stroke-opacity: 0 !important; }
.graph > .background, .plot > .background { fill: none !important; }
.reactive { fill-opacity: .9 !important; stroke-opacity: 1 !important; }
.line-graph .series .line, .xy-graph .series .line, .series .line { stroke-width: 2.5; }
@media (prefers-color-scheme: dark) { svg { color: #d7dae0; } }
"""
_MARK: Final = """inline:
.axis.y .major.line, .axis.y .guide.line.major { stroke: currentColor !important; stroke-opacity: 1 !important; stroke-width: 2; }
.axis.y text.major { font-weight: bold; }
"""


def load_pygal() -> Any:
    """pygal with its styles. Its hook for plug-ins has no `find_spec`, so Python before 3.12 warns at each later import."""
    import pygal  # noqa: PLC0415  # only who draws needs it
    import pygal.style  # noqa: PLC0415

    hooks = [one for one in sys.meta_path if type(one).__name__ == "PluginImportFixer"]
    for hook in hooks:
        sys.meta_path.remove(hook)
    return pygal


def draw(chart: Mapping[str, Any], directory: Path) -> Path:
    """Draw one chart (the JSON of a `table.Chart`) into `<name>.svg`."""
    pygal = load_pygal()
    highest = max(v for values in chart["series"].values() for v in values if v is not None)
    steps = ticks(highest)
    style = pygal.style.CleanStyle(
        font_family="sans-serif",
        background="transparent",
        plot_background="transparent",
        colors=COLOURS,
        **TEXT,
    )
    is_line = chart["kind"] == "line"
    mark = chart.get("mark")
    picture = (pygal.XY if is_line else pygal.Bar)(
        style=style,
        css=["file://style.css", "file://graph.css", THEME, *([_MARK] if mark else [])],
        js=[],
        width=_WIDTH,
        height=_HEIGHT,
        legend_at_bottom=True,
        legend_at_bottom_columns=min(4, len(chart["series"])),
        truncate_label=-1,
        truncate_legend=-1,
        title=chart["title"],
        x_title=chart["label_unit"] or None,
        y_title=chart["unit"],
        range=(0, steps[-1]),
        print_values=False,
        disable_xml_declaration=True,
        no_prefix=True,
    )
    picture.y_labels = [{"value": step, "label": f"{step:g}"} for step in steps]
    if mark:
        name, value = mark
        others = [one for one in picture.y_labels if one["value"] != value]
        picture.y_labels = [*others, {"value": value, "label": f"{name} {value:g}"}]
        picture.y_labels_major = [value]
    if is_line:
        numbers = [float(label) for label in chart["labels"]]
        picture.x_labels = ticks(max(numbers))
        picture.config.xrange = (0, picture.x_labels[-1])
        picture.x_value_formatter = lambda number: f"{number:g}"
    else:
        picture.x_labels = chart["labels"]
    for name, values in chart["series"].items():
        dashed = {"width": 2.5, "dasharray": "7, 5"} if name in chart.get("dashed", ()) else None
        points = list(values)
        if is_line:  # a line skips a missing value
            pairs = zip(numbers, values, strict=True)
            points = [(number, value) for number, value in pairs if value is not None]
        picture.add(name, points, stroke_style=dashed, dots_size=4)
    picture.uuid = chart["name"]  # the same one for each drawing
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{chart['name']}.svg"
    target.write_text(picture.render(is_unicode=True) + "\n")
    return target


def ticks(highest: float) -> list[float]:
    """Round values from zero to at least `highest`, four to eight of them."""
    if highest <= 0:
        return [0.0, 1.0]
    size = 10.0 ** (len(f"{int(highest):d}") - 2) if highest >= 1 else 10.0**-6
    while True:
        for factor in (1, 2, 2.5, 5):
            step = size * factor
            count = -(-highest // step)
            if count <= 7:  # more labels would touch each other
                return [round(step * number, 9) for number in range(int(count) + 1)]
        size *= 10
