"""The chart's objects for Prometheus' operator and Grafana have the content of dashboards/."""

import json

import yaml

from tests.manifests import charts
from tools.generate.dashboards.runbooks import RUNBOOK
from tools.generate.paths import BOARD, CHART, RULES


def test_dashboard_configmap_has_the_unchanged_board_and_grafanas_label() -> None:
    objects = charts.render(CHART / "ci/monitoring-values.yaml")
    map_ = objects["ConfigMap", "wasmer-dashboard-wasmer"]
    assert map_["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(map_["data"]["wasmer.json"]) == json.loads(BOARD.read_text())


def test_rules_come_with_the_operators_own_runbook() -> None:
    rule = charts.render(CHART / "ci/monitoring-values.yaml")["PrometheusRule", "wasmer"]
    ours = RULES.read_text().replace(RUNBOOK, "https://docs.example.com/operations")
    assert rule["spec"] == yaml.safe_load(ours)
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    told = {one["annotations"]["runbook_url"] for one in rule["spec"]["groups"][1]["rules"]}
    assert "https://docs.example.com/operations#autowasmdown" in told


def test_rules_link_to_the_page_of_the_site_by_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["prometheusRule"]["runbook"] == RUNBOOK
    rule = charts.render(prometheusRule={"enabled": True})["PrometheusRule", "wasmer"]
    assert rule["spec"] == yaml.safe_load(RULES.read_text())


def test_monitoring_objects_are_off_by_default() -> None:
    kinds = {kind for kind, _ in charts.render()}
    assert kinds.isdisjoint({"PrometheusRule", "PodMonitor", "ServiceMonitor"})
