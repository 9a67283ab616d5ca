"""The alerts: what is worth telling a person. Each has a section in docs/operations.md.

Not their file (`rules.py`). Invariant: every alert can be brought about by a fault, and goes when the fault does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dashboards.durations import Durations


@dataclass(frozen=True, slots=True)
class Alert:
    """`expression` is made for given durations. `summary` and `description` are Prometheus templates."""

    name: str
    expression: Callable[[Durations], str]
    lasting: str
    severity: Literal["critical", "warning"]
    summary: str
    description: str


def _grows(counter: str, window: str) -> Callable[[Durations], str]:
    """More than before, within the window."""
    return lambda d: f"sum(increase({counter}[{d.text(window)}])) > 0"


def _grows_or_was_born(counter: str, window: str) -> str:
    """The same for a counter of many short lives: a Pod that fails as it starts has failed before its first scrape."""
    born = f"sum({counter} unless {counter} offset {window}) > 0"
    return f"sum(increase({counter}[{window}])) > 0 or {born}"


ALERTS: tuple[Alert, ...] = (
    Alert(
        "AutoWasmDown",
        lambda _: "absent(autowasm_build_info)",
        "5m",
        "critical",
        "No wasmer is scraped.",
        "No replica answers Prometheus. Filters that run go on; new Pods with a filter cannot fetch its module and answer 503.",
    ),
    Alert(
        "AutoWasmNoLeader",
        lambda _: "sum(autowasm_leader) == 0",
        "2m",
        "critical",
        "No replica of wasmer leads.",
        "What is published is served, but no AutoWasm is acted upon and no status is written.",
    ),
    Alert(
        "AutoWasmFailed",
        lambda d: (
            "max by (autowasm_namespace, autowasm, reason) (time() - "
            f'autowasm_not_synced_since_timestamp_seconds{{phase="Failed"}}) > {d.seconds("10m"):g}'
        ),
        "1m",
        "critical",
        "AutoWasm {{ $labels.autowasm_namespace }}/{{ $labels.autowasm }} has failed: {{ $labels.reason }}.",
        "No filter is in place for it, and has not been for {{ $value | humanizeDuration }}.",
    ),
    Alert(
        "AutoWasmNotSynced",
        lambda d: (
            "max by (autowasm_namespace, autowasm, phase, reason) (time() - "
            f'autowasm_not_synced_since_timestamp_seconds{{phase!="Failed"}}) > {d.seconds("30m"):g}'
        ),
        "1m",
        "warning",
        "AutoWasm {{ $labels.autowasm_namespace }}/{{ $labels.autowasm }} is {{ $labels.phase }}: {{ $labels.reason }}.",
        "What it asks for is not in place; what was in place before still is. For {{ $value | humanizeDuration }}.",
    ),
    Alert(
        "AutoWasmSourcesFail",
        lambda _: "autowasm:fetch_failures:ratio_rate10m > 0.5",
        "10m",
        "warning",
        "{{ $value | humanizePercentage }} of the fetches from {{ $labels.kind }} sources fail.",
        "Registries or object servers do not give what AutoWasms ask for.",
    ),
    Alert(
        "AutoWasmPollsFail",
        lambda d: (
            f'(sum(rate(autowasm_polls_total{{outcome!~"unchanged|changed|outdated"}}[{d.text("30m")}])) > 0)'
            f" / sum(rate(autowasm_polls_total[{d.text('30m')}])) > 0.5"
        ),
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of the polls of sources fail.",
        "Tags that `refreshInterval` follows are not followed. What is published stays, and its status may say Synced.",
    ),
    Alert(
        "AutoWasmModulesNotServed",
        lambda d: f'sum(rate(autowasm_blob_responses_total{{status=~"5.."}}[{d.text("5m")}])) > 0',
        "2m",
        "critical",
        "wasmer answers sidecars with errors.",
        "A published module is not here and cannot be had. A sidecar that uses up its retries answers 503 from then on.",
    ),
    Alert(
        "AutoWasmUnknownModules",
        lambda d: (
            f'sum(rate(autowasm_blob_cache_requests_total{{kind="unknown"}}[{d.text("5m")}])) > 0'
        ),
        "5m",
        "warning",
        "Sidecars ask for modules that no AutoWasm publishes.",
        "An EnvoyFilter was left behind, or somebody wrote one by hand; or somebody tries digests.",
    ),
    Alert(
        "AutoWasmStorageFull",
        lambda _: "max(autowasm_storage_full) == 1",
        "5m",
        "critical",
        "The cache of wasmer has no room for a new module.",
        "Modules that are here are served; new ones fail with StorageFull.",
    ),
    Alert(
        "AutoWasmBudgetNearlyPinned",
        lambda _: "max(autowasm_blob_pinned_bytes / autowasm_blob_budget_bytes) > 0.9",
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of the cache's budget is in use by published modules.",
        "What is published is never evicted; soon new modules will have no room.",
    ),
    Alert(
        "AutoWasmBlobDamaged",
        _grows("autowasm_blobs_damaged_total", "15m"),
        "0s",
        "warning",
        "A stored module no longer had its digest.",
        "It was set aside and is fetched again. A disk that does so once does so twice.",
    ),
    Alert(
        "AutoWasmWatchSilent",
        lambda d: (
            f"max by (resource) (autowasm_informer_last_event_age_seconds) > {d.seconds('10m'):g}"
        ),
        "1m",
        "critical",
        "The API server has told nothing of {{ $labels.resource }} for {{ $value | humanizeDuration }}.",
        "Bookmarks come every minute: changes are not seen. What is published is served.",
    ),
    Alert(
        "AutoWasmReconcileErrors",
        lambda _: "autowasm:reconcile_errors:ratio_rate10m > 0.2",
        "10m",
        "warning",
        "{{ $value | humanizePercentage }} of the reconciles fail.",
        "Writes are refused or time out; the log says which (`reconcile failed`).",
    ),
    Alert(
        "AutoWasmWorkerStuck",
        lambda d: f"max(autowasm_workqueue_longest_running_seconds) > {d.seconds('90s'):g}",
        "1m",
        "warning",
        "A worker has been busy with one AutoWasm for {{ $value | humanizeDuration }}.",
        "Calls to the API server hang. Others are reconciled as long as workers are left.",
    ),
    Alert(
        "AutoWasmLoopBlocked",
        lambda d: f"sum(increase(autowasm_loop_blocked_total[{d.text('10m')}])) > 10",
        "5m",
        "warning",
        "wasmer's event loop was held for more than 50 ms, {{ $value | humanize }} times.",
        "Everybody waits meanwhile. The log names the place (`loop blocked`), or the processor is throttled.",
    ),
    Alert(
        "AutoWasmSidecarsCannotFetch",
        lambda d: _grows_or_was_born("envoy_wasm_remote_load_fetch_failures", d.text("10m")),
        "1m",
        "critical",
        "Sidecars used up their retries and have no module.",
        "With failStrategy FAIL_CLOSE they answer 503. Needs Envoy's wasm statistics, see the runbook.",
    ),
    Alert(
        "AutoWasmRequestsFail",
        lambda d: (
            'sum(rate(istio_requests_total{response_code_details="wasm_fail_stream"}'
            f"[{d.text('5m')}])) > 0"
        ),
        "1m",
        "critical",
        "Requests end with 503 because a filter did not load or trapped.",
        "The access log has response_code_details=wasm_fail_stream. Needs that label on Istio's metric, see the runbook.",
    ),
)
