"""The dashboard is the output of the code, and its queries use existing metrics only."""

import json
import re
from typing import Any

from tools.generate.dashboards import grafana
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


def test_nothing_is_fixed_that_an_operator_chooses() -> None:
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
