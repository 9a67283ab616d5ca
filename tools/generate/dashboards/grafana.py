"""wasmer.json: the panels in Grafana's form, by Grafana's own library.

The content of the panels is in `panels.py`. Invariant: the file names no data source and no cluster; users choose both in Grafana.
"""

from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.generate.dashboards.panels import ROWS
from tools.generate.dashboards.queries import Panel
from tools.generate.dashboards.runbooks import RUNBOOK, SITE, address

_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="$datasource")
_AGE: Final = "not Synced for"
_HEIGHT: Final = {"number": 4, "graph": 8, "table": 8}
COLOURS: Final = {
    "Synced": "green",
    "Fetching": "blue",
    "Progressing": "purple",
    "Pending": "text",
    "Degraded": "orange",
    "Failed": "red",
    "starts": "green",
    "doubtful": "orange",
    "refused": "red",
    "Fetched": "green",
    "Running": "green",
    "NotAccepted": "orange",
    "ConfigurationRefused": "red",
    "Crashing": "red",
    "FetchFailed": "red",
    "Refused": "red",
    "NeverAsked": "orange",
    "wasm_fail_stream": "red",
    "not fetched": "red",
    "damaged": "red",
    "budget": "red",
}
"""Colours of series whose name says whether they are good; all others get a colour by their name, the same in every panel."""
_OF_LABELS: Final = ("{{phase}}", "{{state}}", "{{outcome}}")
"""Legends whose series have names in `COLOURS`."""
STATUS: Final = {"2..": "green", "4..": "orange", "5..": "red"}
"""Colours of responses, by their status."""
NAMESPACES: Final = (
    "group by (autowasm_namespace) ("
    "last_over_time(autowasm_not_synced_since_timestamp_seconds[$__range]) or "
    'label_replace(kube_namespace_status_phase, "autowasm_namespace", "$1", "namespace", "(.+)"))'
)
"""All namespaces as kube-state-metrics reports them; without it, those that had an AutoWasm that was not Synced."""

_Built = stat.Panel | table.Panel | timeseries.Panel


def _variable(name: str, label: str, query: str, description: str) -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .query(query)
        .datasource(_SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .include_all(True)
        .all_value(".*")
        .allow_custom_value(True)
        .multi(True)
        .current(everything)
    )


def _number() -> stat.Panel:
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.AREA)
        .no_value("no data")
    )


def _table(panel: Panel) -> table.Panel:
    hidden = {"excludeByName": {"Time": True}, "renameByName": {"Value": _AGE}}
    built = table.Panel().with_transformation(
        DataTransformerConfig(id_val="organize", options=hidden)
    )
    coloured = DynamicConfigValue("custom.cellOptions", {"type": "color-background"})
    return (
        built.override_by_name(_AGE, [DynamicConfigValue("unit", panel.unit), coloured])
        .sort_by([common.TableSortByFieldState().display_name(_AGE).desc(True)])
        .no_value("All AutoWasms are Synced")
    )


def _graph(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .fill_opacity(10)
        .min(0)
        .show_points(VisibilityMode.NEVER)
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    )
    legends = [query.legend for query in panel.queries]
    is_of_labels = any(legend in _OF_LABELS for legend in legends)
    for name, colour in COLOURS.items():
        if is_of_labels or name in legends:
            built = built.override_by_name(name, [_fixed(colour)])
    for status, colour in STATUS.items():
        if any(legend.endswith(" {{status}}") for legend in legends):
            built = built.override_by_regexp(f"/ {status}$/", [_fixed(colour)])
    return built


def _fixed(colour: str) -> DynamicConfigValue:
    return DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})


def _panel(panel: Panel) -> _Built:
    built: _Built
    if panel.kind == "number":
        built = _number()
    elif panel.kind == "table":
        built = _table(panel)
    else:
        built = _graph(panel)
        if panel.steps:
            line = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
            built = built.thresholds_style(line)
    built = built.title(panel.title).description(panel.description).unit(panel.unit)
    built = built.datasource(_SOURCE).span(panel.width).height(_HEIGHT[panel.kind])
    built = built.links([_link(f"Runbook: {name}", address(name)) for name in panel.alerts])
    # Without steps Grafana shows any number from 80 on in red.
    steps = [Threshold(value, colour) for value, colour in panel.steps or ((None, "blue"),)]
    built = built.thresholds(
        dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    )
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expression).ref_id(chr(ord("A") + number))
        target = target.datasource(_SOURCE)
        if panel.kind == "table":
            target = target.instant().format(PromQueryFormat.TABLE)
        else:
            target = target.range().legend_format(query.legend or "__auto")
            target = target.exemplar("fetch_duration" in query.expression)
        built = built.with_target(target)
    return built


def _link(title: str, url: str) -> dashboard.DashboardLink:
    link = dashboard.DashboardLink(title).type(DashboardLinkType.LINK).icon("doc")
    return link.url(url).target_blank(True)


def render() -> str:
    """The file."""
    board = (
        dashboard.Dashboard("AutoWasm")
        .uid("autowasm")
        .description("WebAssembly filters in the mesh: status, module delivery and rollout.")
        .tags(["autowasm", "istio", "wasm"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(_link("Alerts and runbooks", RUNBOOK))
        .link(_link("Metrics", f"{SITE}metrics.html"))
        .timezone("browser")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(
            _variable(
                "namespace",
                "Namespace of AutoWasms",
                f"query_result({NAMESPACES})",
                "For AutoWasms that are not Synced, and staged rollouts that wait. All other panels show all namespaces.",
            ).regex('/autowasm_namespace="([^"]+)"/')
        )
        .with_variable(
            _variable(
                "replica",
                "Replica",
                "label_values(autowasm_build_info, instance)",
                "For values that each replica counts for itself.",
            )
        )
    )
    number = 0
    for title, panels in ROWS.items():
        number += 1
        board = board.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            number += 1
            board = board.with_panel(_panel(panel).id(number))
    return encoded(board.build())


def encoded(board: Dashboard) -> str:
    """The dashboard as JSON in a stable form."""
    return JSONEncoder(sort_keys=True, indent=2).encode(board) + "\n"
