"""The alerts. Each has a section in docs/operations.md.

`rules.py` writes them to a file. Invariant: for every alert there is a fault that makes it fire, and it resolves after the fault.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tools.generate.dashboards.durations import Durations


@dataclass(frozen=True, slots=True)
class Alert:
    """`expression` is a function of the durations. `summary` and `description` are Prometheus templates."""

    name: str
    expression: Callable[[Durations], str]
    lasting: str
    severity: Literal["critical", "warning"]
    summary: str
    description: str


def _grows(counter: str, window: str) -> Callable[[Durations], str]:
    """Whether the counter has increased within the window."""
    return lambda d: f"sum(increase({counter}[{d.text(window)}])) > 0"


def _grows_or_was_born(counter: str, window: str) -> str:
    """The same for a counter of short-lived processes: a Pod that fails at its start has failed before its first scrape."""
    born = f"sum({counter} unless {counter} offset {window}) > 0"
    return f"sum(increase({counter}[{window}])) > 0 or {born}"


_OF_THE_MODULE = "CannotCompile|OutOfMemory|TooLarge"
"""Reasons for a missing pre-flight verdict that affect only one module."""

ALERTS: tuple[Alert, ...] = (
    Alert(
        "AutoWasmDown",
        lambda _: "absent(autowasm_build_info)",
        "5m",
        "critical",
        "Prometheus scrapes no replica of wasmer.",
        "All replicas are down, or Prometheus cannot reach them. Running filters continue to work. If no replica runs, new Pods with a filter cannot fetch its module and answer 503.",
    ),
    Alert(
        "AutoWasmNoLeader",
        lambda _: "sum(autowasm_leader) == 0",
        "2m",
        "critical",
        "No replica of wasmer is the leader.",
        "Published modules are served, but AutoWasms are not reconciled and no status is written.",
    ),
    Alert(
        "AutoWasmFailed",
        lambda d: (
            "max by (autowasm_namespace, autowasm, reason) (time() - "
            f'autowasm_not_synced_since_timestamp_seconds{{phase="Failed"}}) > {d.seconds("10m"):g}'
        ),
        "1m",
        "critical",
        "AutoWasm {{ $labels.autowasm_namespace }}/{{ $labels.autowasm }} failed: {{ $labels.reason }}.",
        "It has had no filter in place for {{ $value | humanizeDuration }}.",
    ),
    Alert(
        "AutoWasmNotSynced",
        lambda d: (
            "max by (autowasm_namespace, autowasm, phase, reason) (time() - "
            f'autowasm_not_synced_since_timestamp_seconds{{phase!~"Failed|Progressing"}}) > {d.seconds("30m"):g}'
        ),
        "1m",
        "warning",
        "AutoWasm {{ $labels.autowasm_namespace }}/{{ $labels.autowasm }} is {{ $labels.phase }}: {{ $labels.reason }}.",
        "It has not been Synced for {{ $value | humanizeDuration }}. A filter that was in place before is still active.",
    ),
    Alert(
        "AutoWasmRolloutWaiting",
        lambda d: (
            "max by (autowasm_namespace, autowasm, reason) (time() - "
            'autowasm_staged_rollout_waiting_since_timestamp_seconds{reason!="PausedByCommand"})'
            f" > {d.seconds('5m'):g}"
        ),
        "1m",
        "warning",
        "The rollout of AutoWasm {{ $labels.autowasm_namespace }}/{{ $labels.autowasm }} waits: {{ $labels.reason }}.",
        "Its step has not been healthy for {{ $value | humanizeDuration }}. At its deadline the rollout is aborted.",
    ),
    Alert(
        "AutoWasmRolloutFailed",
        lambda _: (
            "max by (autowasm_namespace, autowasm) "
            '(autowasm_not_synced_since_timestamp_seconds{reason="RolloutFailed"}) > 0'
        ),
        "0s",
        "warning",
        "The rollout of AutoWasm {{ $labels.autowasm_namespace }}/{{ $labels.autowasm }} was aborted.",
        "All Pods have the previous filter. The status has the Pod, the figures and the reason.",
    ),
    Alert(
        "AutoWasmSourcesFail",
        lambda _: "autowasm:fetch_failures:ratio_rate10m > 0.5",
        "10m",
        "warning",
        "{{ $value | humanizePercentage }} of fetches from {{ $labels.kind }} sources fail.",
        "A registry or an object server, the network, or a shared credential fails. Published modules stay in place.",
    ),
    Alert(
        "AutoWasmPollsFail",
        lambda d: (
            f'(sum(rate(autowasm_polls_total{{outcome!~"unchanged|changed|outdated"}}[{d.text("30m")}])) > 0)'
            f" / sum(rate(autowasm_polls_total[{d.text('30m')}])) > 0.5"
        ),
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of polls fail.",
        "AutoWasms with `refreshInterval` do not follow their tags. Published modules stay in place, and the phase may still be Synced.",
    ),
    Alert(
        "AutoWasmPreflightsFail",
        lambda d: (
            f'(sum(rate(autowasm_preflight_failures_total{{reason!~"{_OF_THE_MODULE}"}}[{d.text("30m")}])) > 0)'
            f" / sum(rate(autowasm_preflight_judgements_total[{d.text('30m')}])) > 0.5"
        ),
        "5m",
        "warning",
        "{{ $value | humanizePercentage }} of pre-flights give no verdict.",
        "Modules are published without a trial start. In mode strict, they are not published. Running filters are not affected.",
    ),
    Alert(
        "AutoWasmModulesNotServed",
        lambda d: f'sum(rate(autowasm_blob_responses_total{{status=~"5.."}}[{d.text("5m")}])) > 0',
        "2m",
        "critical",
        "wasmer answers sidecars with 5xx errors.",
        "A published module is not in the cache and cannot be fetched. A sidecar that has used up its retries answers 503.",
    ),
    Alert(
        "AutoWasmUnknownModules",
        lambda d: (
            f'sum(rate(autowasm_blob_cache_requests_total{{kind="unknown"}}[{d.text("5m")}])) > 0'
        ),
        "5m",
        "warning",
        "Sidecars request modules that no AutoWasm publishes.",
        "An EnvoyFilter is orphaned or was written by hand, or a client guesses digests.",
    ),
    Alert(
        "AutoWasmStorageFull",
        lambda _: "max(autowasm_storage_full) == 1",
        "5m",
        "critical",
        "The cache of wasmer has no space for a new module.",
        "Stored modules are served. New ones fail with StorageFull.",
    ),
    Alert(
        "AutoWasmBudgetNearlyPinned",
        lambda _: "max(autowasm_blob_pinned_bytes / autowasm_blob_budget_bytes) > 0.9",
        "15m",
        "warning",
        "Published modules use {{ $value | humanizePercentage }} of the disk budget.",
        "Published modules are never evicted. Soon there will be no space for new modules.",
    ),
    Alert(
        "AutoWasmBlobDamaged",
        _grows("autowasm_blobs_damaged_total", "15m"),
        "0s",
        "warning",
        "A stored module no longer matches its digest.",
        "It was quarantined and is fetched again. The disk of the volume may be failing.",
    ),
    Alert(
        "AutoWasmWatchSilent",
        lambda d: (
            f"max by (resource) (autowasm_informer_last_event_age_seconds) > {d.seconds('10m'):g}"
        ),
        "1m",
        "critical",
        "No watch event for {{ $labels.resource }} from the API server for {{ $value | humanizeDuration }}.",
        "A working watch receives a bookmark every minute. This one is silent, so changes are not detected. Published modules are served.",
    ),
    Alert(
        "AutoWasmReconcileErrors",
        lambda _: "autowasm:reconcile_errors:ratio_rate10m > 0.2",
        "10m",
        "warning",
        "{{ $value | humanizePercentage }} of reconciles fail.",
        "Writes are rejected or time out. The log has the error (`reconcile failed`).",
    ),
    Alert(
        "AutoWasmWorkerStuck",
        lambda d: f"max(autowasm_workqueue_longest_running_seconds) > {d.seconds('90s'):g}",
        "1m",
        "warning",
        "A worker has been processing one AutoWasm for {{ $value | humanizeDuration }}.",
        "Calls to the API server hang. Other AutoWasms are reconciled as long as a worker is free.",
    ),
    Alert(
        "AutoWasmLoopBlocked",
        lambda d: f"sum(increase(autowasm_loop_blocked_total[{d.text('10m')}])) > 10",
        "5m",
        "warning",
        "The event loop of wasmer was blocked for more than 50 ms {{ $value | humanize }} times in 10 minutes.",
        "All requests wait meanwhile. The log has the stack (`loop blocked`). Another possible cause is CPU throttling.",
    ),
    Alert(
        "AutoWasmSidecarsCannotFetch",
        lambda d: _grows_or_was_born("envoy_wasm_remote_load_fetch_failures", d.text("10m")),
        "1m",
        "critical",
        "Sidecars have used up their retries and have no module.",
        "With failStrategy FAIL_CLOSE they answer 503. This alert requires Envoy's Wasm statistics (see the runbook).",
    ),
    Alert(
        "AutoWasmRequestsFail",
        lambda d: (
            'sum(rate(istio_requests_total{response_code_details="wasm_fail_stream"}'
            f"[{d.text('5m')}])) > 0"
        ),
        "1m",
        "critical",
        "Requests fail with 503 because a filter did not load or trapped.",
        "The access log has response_code_details=wasm_fail_stream. This alert requires that label on Istio's metric (see the runbook).",
    ),
)
