"""prometheus-rules.yaml: recording rules, and the alerts with links to their runbooks.

Not what is alerted on (`alerts.py`). Invariant: the same definitions give the operators' file and a test's quick one.
"""

from typing import Any

import yaml

from dashboards.alerts import ALERTS, Alert
from dashboards.durations import Durations

RUNBOOK = "docs/operations.md"
"""The chart puts the place where it can be read in front."""
_HEADER = "# Made by `make dashboards` from dashboards/*.py. Runbooks: docs/operations.md.\n"


def recordings(d: Durations) -> dict[str, str]:
    """Expressions by the name under which their results are kept."""
    w5, w10 = d.text("5m"), d.text("10m")
    return {
        "autowasm:synced:ratio": (
            'max(autowasm_autowasms{phase="Synced"}) / max(sum by (instance) (autowasm_autowasms))'
        ),
        "autowasm:fetch_failures:ratio_rate10m": (
            f'(sum by (kind) (rate(autowasm_fetches_total{{reason!="Success"}}[{w10}])) > 0)'
            f" / sum by (kind) (rate(autowasm_fetches_total[{w10}]))"
        ),
        "autowasm:fetch_duration_seconds:p99_rate5m": (
            "histogram_quantile(0.99, sum by (kind, le) "
            f'(rate(autowasm_fetch_duration_seconds_bucket{{stage="fetch"}}[{w5}])))'
        ),
        "autowasm:blob_errors:ratio_rate5m": (
            f'(sum(rate(autowasm_blob_responses_total{{status=~"5.."}}[{w5}])) or vector(0))'
            f" / sum(rate(autowasm_blob_responses_total[{w5}]))"
        ),
        "autowasm:reconcile_errors:ratio_rate10m": (
            '(sum(rate(autowasm_reconcile_duration_seconds_count{result=~"error|panic"}'
            f"[{w10}])) > 0) / sum(rate(autowasm_reconcile_duration_seconds_count[{w10}]))"
        ),
    }


def document(d: Durations) -> dict[str, Any]:
    """The file as a value."""
    recorded = [{"record": name, "expr": text} for name, text in recordings(d).items()]
    alerts = [_rule(alert, d) for alert in ALERTS]
    groups = [
        {"name": "autowasm.recordings", "rules": recorded},
        {"name": "autowasm.alerts", "rules": alerts},
    ]
    if d.scale != 1:
        groups = [{**group, "interval": "1s"} for group in groups]
    return {"groups": groups}


def _rule(alert: Alert, d: Durations) -> dict[str, Any]:
    lasting = "0s" if alert.lasting == "0s" else d.text(alert.lasting)
    return {
        "alert": alert.name,
        "expr": alert.expression(d),
        "for": lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{RUNBOOK}#{alert.name.lower()}",
        },
    }


def render(d: Durations | None = None) -> str:
    """The file."""
    document_ = document(d or Durations())
    return _HEADER + yaml.safe_dump(document_, sort_keys=False, width=120, allow_unicode=True)
