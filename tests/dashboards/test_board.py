"""The dashboard is the output of the code, of Grafana's schema, and its queries use existing metrics only and give what their panels say.

No Grafana imports it here, because no package registry has one that runs: Debian has no package of it, npm has libraries of its
frontend but neither the application nor its panels, PyPI has clients and generators, and the Go module is the backend alone, without
the built frontend. So Grafana's own library reads the file, Prometheus evaluates the queries, and `tests/chaos/test_alerts_*.py`
demand data of every panel.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.dashboards.promtool import check_expression
from tests.docs.blocks import ROOT
from tools.generate.dashboards import grafana
from tools.generate.dashboards.alerts import ALERTS
from tools.generate.dashboards.panels import ROWS
from tools.generate.dashboards.queries import Panel
from tools.generate.dashboards.runbooks import RUNBOOK
from tools.generate.pages import metrics
from tools.generate.paths import BOARD, RULES


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(BOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def test_file_is_up_to_date() -> None:
    assert BOARD.read_text() == grafana.render(), "run `make dashboards`"


def test_every_metric_is_shown() -> None:
    """Every metric is in a panel or in a recording rule."""
    text = BOARD.read_text() + RULES.read_text()
    hidden = {row.name for row in metrics.rows() if row.name not in text}
    assert hidden <= {
        "autowasm_workqueue_adds_total",  # reconciles show the same
        "autowasm_blob_sends_aborted_total",  # for the analysis of other problems
        "autowasm_blobs_evicted_total",
        "autowasm_resends_total",
        "autowasm_peer_copies_total",
        "autowasm_storage_refusals_total",
    }


def test_board_has_no_fixed_datasource_or_time_window() -> None:
    board = json.loads(BOARD.read_text())
    assert [one["name"] for one in board["templating"]["list"]] == [
        "datasource",
        "namespace",
        "replica",
    ]
    for panel in panels():
        assert panel["datasource"]["uid"] == "$datasource"
        assert all(target["datasource"]["uid"] == "$datasource" for target in panel["targets"])
        assert panel["description"]
        for target in panel["targets"]:
            assert not re.search(r"\[\d", target["expr"]), "windows are Grafana's"
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_panels_need_no_recording_rule() -> None:
    recorded = {rule["record"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    assert recorded
    assert [name for name in recorded if name in BOARD.read_text()] == []


def test_it_is_of_grafanas_schema() -> None:
    """What Grafana's library reads and writes again is the same: no field is unknown to it, and none is lost."""
    board = json.loads(BOARD.read_text())
    again = json.loads(grafana.encoded(Dashboard.from_json(board)))
    assert again == board


def test_every_alert_has_its_runbook_at_a_panel_and_every_runbook_is_on_the_page() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    sections = {line.removeprefix("## ").lower() for line in text.splitlines() if line[:3] == "## "}
    linked = [link["url"] for panel in panels() for link in panel.get("links", ())]
    expected = {f"{RUNBOOK}#{alert.name.lower()}" for alert in ALERTS}
    assert set(linked) == expected
    assert {url.partition("#")[2] for url in linked} <= sections


def colour(panel: Panel, value: float) -> str:
    """As Grafana chooses it: of the last step that the value reaches."""
    return [colour for begin, colour in panel.steps if begin is None or value >= begin][-1]


@pytest.mark.parametrize(
    ("title", "value", "expected"),
    [
        ("Leaders", 0, "red"),
        ("Leaders", 1, "green"),
        ("Leaders", 2, "red"),
        ("Replicas", 0, "red"),
        ("Replicas", 1, "orange"),
        ("Replicas", 3, "green"),
        ("Synced", 1, "green"),
        ("Synced", 0.99, "orange"),
        ("Synced", 0.5, "red"),
        ("5xx responses to sidecars", 0, "green"),
        ("5xx responses to sidecars", 0.001, "red"),
        ("Disk budget in use", 0.5, "green"),
        ("Disk budget in use", 0.95, "red"),
    ],
)
def test_colours_say_whether_a_number_is_good(title: str, value: float, expected: str) -> None:
    (panel,) = (one for one in ROWS["Overview"] if one.title == title)
    assert colour(panel, value) == expected


def test_no_number_has_grafanas_own_thresholds() -> None:
    """Those are 80, whatever the number is."""
    for panel in panels():
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert 80 not in {step["value"] for step in steps}, panel["title"]


@pytest.mark.parametrize(
    ("title", "series", "expected"),
    [
        ("Leaders", {}, 0),
        ("Leaders", {"autowasm_leader{instance='a'}": "0x9", "autowasm_leader{instance='b'}": "1x9"}, 1),
        ("Replicas", {}, 0),
        ("Replicas", {"autowasm_build_info{instance='a'}": "1x9"}, 1),
        ("Synced", {'autowasm_autowasms{phase="Synced"}': "3x9", 'autowasm_autowasms{phase="Failed"}': "1x9"}, 0.75),
        ("5xx responses to sidecars", {'autowasm_blob_responses_total{status="200"}': "0+1x9"}, 0),
        (
            "5xx responses to sidecars",
            {'autowasm_blob_responses_total{status="200"}': "0+1x9", 'autowasm_blob_responses_total{status="503"}': "0+1x9"},
            0.5,
        ),
    ],
)  # fmt: skip
def test_numbers_are_right_by_prometheus(
    title: str, series: dict[str, str], expected: float, tmp_path: Path
) -> None:
    (panel,) = (one for one in ROWS["Overview"] if one.title == title)
    text = panel.queries[0].expression.replace("$__rate_interval", "5m").replace("$replica", ".*")
    check_expression(text, series, [({}, expected)], tmp_path)


def test_a_rollout_that_waits_is_one_curve_although_two_replicas_have_reported_it(
    tmp_path: Path,
) -> None:
    (panel,) = (one for one in ROWS["Rollout"] if one.title == "Staged rollouts that wait")
    text = panel.queries[0].expression.replace("$namespace", "a")
    name = "autowasm_staged_rollout_waiting_since_timestamp_seconds"
    series = {
        f'{name}{{autowasm_namespace="a",autowasm="x",reason="NotAccepted",instance="1"}}': "60x9",
        f'{name}{{autowasm_namespace="a",autowasm="x",reason="NotAccepted",instance="2"}}': "120x9",
        f'{name}{{autowasm_namespace="b",autowasm="y",reason="NotAccepted",instance="2"}}': "60x9",
    }
    labels = {"autowasm_namespace": "a", "autowasm": "x", "reason": "NotAccepted"}
    check_expression(text, series, [(labels, 9 * 60 - 60)], tmp_path)


def test_the_variable_lists_all_namespaces(tmp_path: Path) -> None:
    series = {
        'autowasm_not_synced_since_timestamp_seconds{autowasm_namespace="a",autowasm="x"}': "5x2 _x7",
        'kube_namespace_status_phase{namespace="a",phase="Active"}': "1x9",
        'kube_namespace_status_phase{namespace="b",phase="Active"}': "1x9",
    }
    text = grafana.NAMESPACES.replace("$__range", "1h")
    found = [({"autowasm_namespace": name}, 1.0) for name in ("a", "b")]
    check_expression(text, series, found, tmp_path)
