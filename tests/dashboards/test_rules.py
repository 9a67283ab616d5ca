"""The rules: well formed, each alert fires for its fault and resolves afterwards, each has its runbook. By Prometheus' own promtool."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.dashboards.promtool import promtool
from tools.generate.dashboards import rules
from tools.generate.dashboards.alerts import ALERTS
from tools.generate.pages import metrics
from tools.generate.paths import DOCS, RULES

OPERATIONS = DOCS / "operations.md"


@dataclass(frozen=True)
class Case:
    """Series at one sample a minute: normal, the fault from minute 10 to 70, normal again. `labels` are those of the alert."""

    alert: str
    series: tuple[tuple[str, str], ...]


def gauge(well: float, ill: float) -> str:
    return f"{well}x9 {ill}x59 {well}x109"


def counter(ill: int) -> str:
    """Grows by `ill` a minute during the fault only."""
    return f"0x9 0+{ill}x59 {60 * ill}x109"


GONE = "1x9 _x59 1x109"
_SINCE = 'autowasm_not_synced_since_timestamp_seconds{autowasm_namespace="a",autowasm="b",reason="R",phase='
# Since the epoch of promtool's tests, which is minute 0; well again: the series is gone.
_UNSYNCED = "_x10 600x59 _x109"

CASES = (
    Case("AutoWasmDown", (("autowasm_build_info", GONE),)),
    Case("AutoWasmNoLeader", (('autowasm_leader{instance="a"}', gauge(1, 0)), ('autowasm_leader{instance="b"}', "0x200"))),
    Case("AutoWasmFailed", ((_SINCE + '"Failed"}', _UNSYNCED),)),
    Case("AutoWasmNotSynced", ((_SINCE + '"Degraded"}', _UNSYNCED),)),
    Case(
        "AutoWasmRolloutWaiting",
        (
            (
                'autowasm_staged_rollout_waiting_since_timestamp_seconds{autowasm_namespace="a",autowasm="b",reason="NotAccepted"}',
                _UNSYNCED,
            ),
        ),
    ),
    Case("AutoWasmRolloutFailed", ((_SINCE.replace('"R"', '"RolloutFailed"') + '"Degraded"}', _UNSYNCED),)),
    Case(
        "AutoWasmSourcesFail",
        (
            ('autowasm_fetches_total{kind="registry",reason="SourceUnavailable"}', counter(9)),
            ('autowasm_fetches_total{kind="registry",reason="Success"}', "0+1x200"),
        ),
    ),
    Case(
        "AutoWasmPollsFail",
        (
            ('autowasm_polls_total{outcome="RegistryUnavailable"}', counter(9)),
            ('autowasm_polls_total{outcome="unchanged"}', "0+1x200"),
            ('autowasm_polls_total{outcome="changed"}', "0+1x200"),
        ),
    ),
    Case(
        "AutoWasmPreflightsFail",
        (
            ('autowasm_preflight_failures_total{reason="NotStarted"}', counter(9)),
            ('autowasm_preflight_judgements_total{outcome="unknown"}', counter(9)),
            ('autowasm_preflight_judgements_total{outcome="starts"}', "0+1x200"),
        ),
    ),
    Case("AutoWasmModulesNotServed", (('autowasm_blob_responses_total{status="503",method="GET"}', counter(1)),)),
    Case("AutoWasmUnknownModules", (('autowasm_blob_cache_requests_total{kind="unknown"}', counter(1)),)),
    Case("AutoWasmStorageFull", (("autowasm_storage_full", gauge(0, 1)),)),
    Case("AutoWasmBudgetNearlyPinned", (("autowasm_blob_pinned_bytes", gauge(50, 95)), ("autowasm_blob_budget_bytes", "100x200"))),
    Case("AutoWasmBlobDamaged", (("autowasm_blobs_damaged_total", counter(1)),)),
    Case("AutoWasmWatchSilent", (('autowasm_informer_last_event_age_seconds{resource="pods"}', "5x9 0+60x59 5x109"),)),
    Case(
        "AutoWasmReconcileErrors",
        (
            ('autowasm_reconcile_duration_seconds_count{result="error"}', counter(9)),
            ('autowasm_reconcile_duration_seconds_count{result="success"}', "0+3x200"),
        ),
    ),
    Case("AutoWasmWorkerStuck", (("autowasm_workqueue_longest_running_seconds", "0x9 0+60x59 0x109"),)),
    Case("AutoWasmLoopBlocked", (("autowasm_loop_blocked_total", counter(5)),)),
    Case("AutoWasmSidecarsCannotFetch", (("envoy_wasm_remote_load_fetch_failures", counter(1)),)),
    Case("AutoWasmRequestsFail", (('istio_requests_total{response_code_details="wasm_fail_stream"}', counter(1)),)),
)  # fmt: skip


def test_file_is_up_to_date_and_well_formed() -> None:
    assert RULES.read_text() == rules.render(), "run `make dashboards`"
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_every_alert_has_a_case() -> None:
    assert [case.alert for case in CASES] == [alert.name for alert in ALERTS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_fires_in_its_fault_and_resolves_after(case: Case, tmp_path: Path) -> None:
    expression = f'count(ALERTS{{alertname="{case.alert}", alertstate="firing"}})'
    firing = [{"labels": "{}", "value": 1}]
    told = {
        "5m": [],
        "68m": firing,  # 58 minutes into it: the slowest waits for 31
        "110m": [],
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series],
        "promql_expr_test": [
            {"expr": expression, "eval_time": at, "exp_samples": samples}
            for at, samples in told.items()
        ],
    }
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [test],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(document))
    promtool("test", "rules", file)


def test_modules_that_need_too_much_are_no_fault_of_the_preflight(tmp_path: Path) -> None:
    series = [
        {"series": 'autowasm_preflight_failures_total{reason="OutOfMemory"}', "values": counter(9)},
        {"series": 'autowasm_preflight_judgements_total{outcome="unknown"}', "values": counter(9)},
    ]
    expression = 'count(ALERTS{alertname="AutoWasmPreflightsFail"})'
    silent = [{"expr": expression, "eval_time": "68m", "exp_samples": []}]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": silent}
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(document))
    promtool("test", "rules", file)


def test_a_pod_that_failed_before_its_first_scrape_counts(tmp_path: Path) -> None:
    expression = 'count(ALERTS{alertname="AutoWasmSidecarsCannotFetch", alertstate="firing"})'
    told = {"9m": [], "15m": [{"labels": "{}", "value": 1}], "30m": []}
    series = {"series": 'envoy_wasm_remote_load_fetch_failures{pod="new"}', "values": "_x10 1x90"}
    test = {
        "interval": "1m",
        "input_series": [series],
        "promql_expr_test": [
            {"expr": expression, "eval_time": at, "exp_samples": samples}
            for at, samples in told.items()
        ],
    }
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(document))
    promtool("test", "rules", file)


def test_rules_query_only_existing_metrics() -> None:
    known = set()
    for row in metrics.rows():
        histogram = row.kind.endswith("histogram")
        known |= (
            {f"{row.name}_{part}" for part in ("bucket", "count", "sum")}
            if histogram
            else {row.name}
        )
    recorded = {rule["record"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    asked = set()
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            asked |= set(re.findall(r"\b(autowasm[a-z0-9_:]+)\b(?!=|!|\s*[,)]\s*\()", rule["expr"]))
    labels = {"autowasm_namespace"}
    assert asked
    assert asked - labels <= known | recorded


def test_every_alert_has_its_section_in_the_runbook() -> None:
    sections = re.split(r"^## ", OPERATIONS.read_text(), flags=re.MULTILINE)[1:]
    told = {section.splitlines()[0]: section for section in sections}
    for alert in ALERTS:
        for part in ("**Means**", "**See**", "**Do**"):
            assert part in told.get(alert.name, ""), f"{alert.name}: {part}"
    assert {name for name in told if name.startswith("AutoWasm")} == {one.name for one in ALERTS}
