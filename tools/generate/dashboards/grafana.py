"""wasmer.json: the panels in Grafana's form, by Grafana's own library.

Not what they show (`panels.py`). Invariant: no data source and no cluster is written into it; both are chosen in Grafana.
"""

from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.generate.dashboards.panels import ROWS
from tools.generate.dashboards.queries import Panel

_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="$datasource")
_HEIGHT: Final = {"number": 4, "graph": 8, "table": 8}

_Built = stat.Panel | table.Panel | timeseries.Panel


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(_SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current(everything)
    )


def _panel(panel: Panel) -> _Built:
    built: _Built
    if panel.kind == "number":
        built = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    elif panel.kind == "table":
        hidden = {"excludeByName": {"Time": True}, "renameByName": {"Value": "not Synced for"}}
        built = table.Panel().with_transformation(
            DataTransformerConfig(id_val="organize", options=hidden)
        )
    else:
        built = timeseries.Panel().fill_opacity(10)
    built = built.title(panel.title).description(panel.description).unit(panel.unit)
    built = built.datasource(_SOURCE).span(panel.width).height(_HEIGHT[panel.kind])
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


def render() -> str:
    """The file."""
    board = (
        dashboard.Dashboard("AutoWasm")
        .uid("autowasm")
        .description("WebAssembly filters in the mesh: status, module delivery and rollout.")
        .tags(["autowasm", "istio", "wasm"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(
            _variable(
                "namespace",
                "Namespace of AutoWasms",
                "label_values(autowasm_not_synced_since_timestamp_seconds, autowasm_namespace)",
            )
        )
        .with_variable(
            _variable("replica", "Replica", "label_values(autowasm_build_info, instance)")
        )
    )
    number = 0
    for title, panels in ROWS.items():
        number += 1
        board = board.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            number += 1
            board = board.with_panel(_panel(panel).id(number))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"
