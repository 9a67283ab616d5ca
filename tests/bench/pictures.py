"""Charts as SVG files: no script, and no external font or style sheet, so that a Markdown page can show them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT = 760, 380


def draw(chart: Mapping[str, Any], directory: Path) -> Path:
    """One chart, as `table.Chart` is kept, into `<name>.svg`."""
    import pygal  # noqa: PLC0415  # only who draws needs it
    from pygal.style import CleanStyle  # noqa: PLC0415

    kinds = {"bar": pygal.Bar, "line": pygal.Line}
    style = CleanStyle(
        font_family="sans-serif",
        background="white",
        plot_background="white",
        colors=("#1f77b4", "#c44e52", "#8c8c8c", "#55a868", "#8172b2", "#ccb974"),
        title_font_size=15,
        label_font_size=11,
        legend_font_size=12,
        major_label_font_size=11,
    )
    picture = kinds[chart["kind"]](
        style=style,
        js=[],
        width=_WIDTH,
        height=_HEIGHT,
        legend_at_bottom=True,
        show_minor_x_labels=True,
        truncate_legend=-1,
        logarithmic=chart["logarithmic"],
        title=chart["title"],
        x_title=chart["label_unit"] or None,
        y_title=chart["unit"],
        print_values=False,
        disable_xml_declaration=True,
        no_prefix=True,
    )
    picture.x_labels = chart["labels"]
    for name, values in chart["series"].items():
        picture.add(name, list(values))
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{chart['name']}.svg"
    target.write_text(picture.render(is_unicode=True) + "\n")
    return target
