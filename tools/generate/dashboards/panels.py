"""The content of the dashboard, as values: rows of panels with their queries.

Not Grafana's form of it (`grafana.py`). Invariant: every query has data while wasmer and Envoy run and are scraped, without
recording rules; windows are Grafana's own.
"""

from tools.generate.dashboards.queries import (
    N,
    Panel,
    Query,
    S,
    W,
    graph,
    high_is_bad,
    low_is_bad,
    number,
    quantile,
    rate,
)

OVERVIEW = (
    number("AutoWasms", "max(sum by (instance) (autowasm_autowasms))", "All AutoWasms."),
    number(
        "Synced",
        'max(autowasm_autowasms{phase="Synced"}) / max(sum by (instance) (autowasm_autowasms))',
        "Share of AutoWasms in phase Synced.",
        "percentunit",
        steps=low_is_bad(red_below=0.9, green_from=1),
        alerts=("AutoWasmFailed", "AutoWasmNotSynced"),
    ),
    number(
        "Replicas",
        f"count(autowasm_build_info{{{S}}}) or vector(0)",
        "Replicas that Prometheus scrapes. With only one, a new Pod waits while that replica restarts.",
        steps=low_is_bad(red_below=1, green_from=2),
        alerts=("AutoWasmDown",),
    ),
    number(
        "Leaders",
        "sum(autowasm_leader) or vector(0)",
        "1 is normal. 0: AutoWasms are not reconciled.",
        steps=((None, "red"), (1, "green"), (2, "red")),
        alerts=("AutoWasmNoLeader",),
    ),
    number(
        "5xx responses to sidecars",
        f'(sum(rate(autowasm_blob_responses_total{{status=~"5..", {S}}}[{W}])) or vector(0))'
        f" / sum(rate(autowasm_blob_responses_total{{{S}}}[{W}]))",
        "Share of blob port responses with a 5xx status. No value: no sidecar requested a module.",
        "percentunit",
        steps=((None, "green"), (0.000001, "red")),
        alerts=("AutoWasmModulesNotServed",),
    ),
    number(
        "Disk budget in use",
        f"max(autowasm_blob_pinned_bytes{{{S}}} / autowasm_blob_budget_bytes{{{S}}})",
        "Share of the budget that published modules use. They are never evicted.",
        "percentunit",
        steps=high_is_bad(orange_from=0.75, red_from=0.9),
        alerts=("AutoWasmBudgetNearlyPinned", "AutoWasmStorageFull"),
    ),
    graph(
        "AutoWasms by phase",
        "Every replica counts all AutoWasms; the panel shows the maximum.",
        ("max by (phase) (autowasm_autowasms)", "{{phase}}"),
    ),
    graph(
        "Tag age",
        "AutoWasms by the time since their tag was last resolved to the module in use.",
        ("max by (le) (autowasm_tag_age_seconds_bucket)", "up to {{le}} s"),
    ),
    graph(
        "Versions",
        "Running versions of wasmer and Python.",
        (f"count by (version, python) (autowasm_build_info{{{S}}})", "{{version}} on {{python}}"),
    ),
)

NOT_SYNCED = (
    Panel(
        "AutoWasms that are not Synced",
        (
            Query(
                "max by (autowasm_namespace, autowasm, phase, reason) (time() - "
                f"autowasm_not_synced_since_timestamp_seconds{{{N}}})"
            ),
        ),
        "The 100 AutoWasms that have not been Synced for the longest time. Run `wasmc explain NAME` for the cause and the remedy.",
        kind="table",
        unit="s",
        width=16,
        steps=high_is_bad(orange_from=600, red_from=1800),
        alerts=("AutoWasmFailed", "AutoWasmNotSynced"),
    ),
    graph(
        "Failed fetches by reason",
        "Failed fetches per second, by condition reason.",
        (rate("autowasm_fetches_total", "reason", 'reason!="Success"'), "{{reason}}"),
        unit="ops",
        alerts=("AutoWasmSourcesFail",),
    ),
)

FETCHING = (
    graph(
        "Fetch duration",
        "Median and 99th percentile, by stage.",
        (
            quantile(0.5, "autowasm_fetch_duration_seconds", "kind, stage"),
            "{{kind}} {{stage}} 50%",
        ),
        (
            quantile(0.99, "autowasm_fetch_duration_seconds", "kind, stage"),
            "{{kind}} {{stage}} 99%",
        ),
        unit="s",
    ),
    graph(
        "Fetches",
        "Completed fetches per second, by kind of source and reason.",
        (rate("autowasm_fetches_total", "kind, reason"), "{{kind}} {{reason}}"),
        unit="ops",
    ),
    graph(
        "Bytes from sources and peers",
        "Bytes received per second.",
        (rate("autowasm_fetched_bytes_total", "kind"), "{{kind}}"),
        (rate("autowasm_peer_bytes_total"), "other replicas"),
        unit="Bps",
    ),
    graph(
        "Running and waiting fetches",
        "Also the open circuit breakers: sources whose requests are paused after failures.",
        (f"sum(autowasm_fetches_running{{{S}}})", "running"),
        (f"sum(autowasm_fetches_waiting{{{S}}})", "waiting"),
        (f"sum(autowasm_circuit_breakers_open{{{S}}})", "circuit breakers open"),
    ),
    graph(
        "Requests to sources",
        "Requests per second (logins, manifests, modules, polls), by host. A private host has its own name if flags or the policy file name it.",
        (rate("autowasm_source_requests_total", "host"), "{{host}}"),
        unit="reqps",
        alerts=("AutoWasmPollsFail",),
    ),
    graph(
        "Blob store",
        "Bytes of stored blobs and of published ones, and the disk budget.",
        (f"max(autowasm_blob_bytes{{{S}}})", "stored"),
        (f"max(autowasm_blob_pinned_bytes{{{S}}})", "published"),
        (f"min(autowasm_blob_budget_bytes{{{S}}})", "budget"),
        unit="bytes",
        alerts=("AutoWasmBudgetNearlyPinned", "AutoWasmStorageFull"),
    ),
    graph(
        "Free disk space",
        "Free bytes on the volume of the cache: the minimum of all replicas.",
        (f"min(autowasm_storage_free_bytes{{{S}}})", "free"),
        unit="bytes",
    ),
    graph(
        "Blobs",
        "Stored, published and damaged blobs.",
        (f"max(autowasm_blobs{{{S}}})", "stored"),
        (f"max(autowasm_blobs_pinned{{{S}}})", "published"),
        (rate("autowasm_blobs_damaged_total"), "damaged /s"),
        alerts=("AutoWasmBlobDamaged",),
    ),
)

DATA_PATH = (
    graph(
        "Responses to sidecars",
        "Responses of the blob port per second, by method and status.",
        (rate("autowasm_blob_responses_total", "method, status"), "{{method}} {{status}}"),
        unit="reqps",
        alerts=("AutoWasmModulesNotServed",),
    ),
    graph(
        "Blob requests by cache result",
        "Requests per second: on disk, fetched from a peer or the origin, held until the blob was stored, unknown, failed.",
        (rate("autowasm_blob_cache_requests_total", "kind"), "{{kind}}"),
        unit="reqps",
        alerts=("AutoWasmUnknownModules",),
    ),
    graph(
        "Held requests and sends",
        "Requests that wait for a blob, and sends in flight.",
        (f"sum(autowasm_blob_requests_held{{{S}}})", "held"),
        (f"sum(autowasm_blob_sends{{{S}}})", "sends"),
    ),
    graph(
        "Bytes to sidecars",
        "Bytes written to sockets per second.",
        (rate("autowasm_blob_served_bytes_total"), "bytes"),
        unit="Bps",
    ),
    graph(
        "Envoy: module loads",
        "Counters of Envoy: fetches, and hits and misses of its code cache.",
        (f"sum(rate(envoy_wasm_remote_load_fetch_successes[{W}]))", "fetched"),
        (f"sum(rate(envoy_wasm_remote_load_fetch_failures[{W}]))", "not fetched"),
        (f"sum(rate(envoy_wasm_remote_load_cache_hits[{W}]))", "cache hits"),
        (f"sum(rate(envoy_wasm_remote_load_cache_misses[{W}]))", "cache misses"),
        unit="ops",
        alerts=("AutoWasmSidecarsCannotFetch",),
    ),
    graph(
        "Envoy: requests failed by a filter",
        "response_code_details=wasm_fail_stream: the module did not load, or it trapped.",
        (
            f'sum(rate(istio_requests_total{{response_code_details="wasm_fail_stream"}}[{W}]))',
            "wasm_fail_stream",
        ),
        (f"sum(rate(istio_requests_total[{W}]))", "all"),
        unit="reqps",
        alerts=("AutoWasmRequestsFail",),
    ),
)

ROLLOUT = (
    graph(
        "Pods by rollout state",
        "Pods that AutoWasms match, by whether they fetched the module, or why not. Reported by the leader.",
        ("max by (state) (autowasm_rollout_pods)", "{{state}}"),
    ),
    graph(
        "Unfinished rollouts",
        "AutoWasms whose module is not known to have been fetched by all matched sidecars.",
        ("max(autowasm_rollout_unfinished)", "unfinished"),
    ),
    graph(
        "Rollout duration",
        "Rollouts by duration, from the change of the EnvoyFilter to the last download.",
        ("max by (le) (autowasm_rollout_duration_seconds_bucket)", "up to {{le}} s"),
    ),
    graph(
        "Pods by run state",
        "Pods with a sidecar that AutoWasms match, by whether the module runs in it, or why not. Reported by the leader.",
        ("max by (state) (autowasm_running_pods)", "{{state}}"),
    ),
    graph(
        "Unsettled AutoWasms",
        "AutoWasms whose sidecars are being read, because the filter or Pods changed.",
        ("max(autowasm_running_unsettled)", "unsettled"),
    ),
    graph(
        "Staged rollouts: steps and aborts",
        "Steps that began and rollouts that were aborted, by reason, per second.",
        (rate("autowasm_staged_rollout_steps_total"), "steps"),
        (rate("autowasm_staged_rollout_aborts_total", "reason"), "aborted: {{reason}}"),
        unit="ops",
        alerts=("AutoWasmRolloutFailed",),
    ),
    graph(
        "Staged rollouts: time in a step",
        "Median time in a step, by how it ended.",
        (quantile(0.5, "autowasm_staged_rollout_step_duration_seconds", "result"), "{{result}}"),
        unit="s",
    ),
    graph(
        "Staged rollouts that wait",
        "How long a step has not been healthy, and what it waits for.",
        (
            "max by (autowasm_namespace, autowasm, reason) (time() - "
            f"autowasm_staged_rollout_waiting_since_timestamp_seconds{{{N}}})",
            "{{autowasm_namespace}}/{{autowasm}}: {{reason}}",
        ),
        unit="s",
        steps=((None, "transparent"), (300, "red")),
        alerts=("AutoWasmRolloutWaiting",),
    ),
    graph(
        "Sidecars read",
        "Attempts to read sidecars' statistics per second, by result. At most 50.",
        (rate("autowasm_sidecar_reads_total", "result"), "{{result}}"),
        unit="reqps",
    ),
    graph(
        "Duration of a reading",
        "99th percentile of the requests for sidecars' statistics, failed ones included.",
        (quantile(0.99, "autowasm_sidecar_read_duration_seconds"), "99%"),
        unit="s",
    ),
)

CONTROL = (
    graph(
        "Reconciles",
        "Reconciles per second, by result.",
        (rate("autowasm_reconcile_duration_seconds_count", "result"), "{{result}}"),
        unit="ops",
        alerts=("AutoWasmReconcileErrors",),
    ),
    graph(
        "Reconcile duration",
        "99th percentile of the wait for a worker and of the processing, and the longest-running reconcile.",
        (quantile(0.99, "autowasm_workqueue_queue_duration_seconds"), "waiting"),
        (quantile(0.99, "autowasm_workqueue_work_duration_seconds"), "working"),
        (f"max(autowasm_workqueue_longest_running_seconds{{{S}}})", "longest now"),
        unit="s",
        steps=((None, "transparent"), (90, "red")),
        alerts=("AutoWasmWorkerStuck",),
    ),
    graph(
        "Work queue",
        "Keys that wait for a worker or become due later, and retries per second.",
        (f"sum(autowasm_workqueue_depth{{{S}}})", "waiting"),
        (f"sum(autowasm_workqueue_delayed{{{S}}})", "due later"),
        (rate("autowasm_workqueue_retries_total"), "retries /s"),
    ),
    graph(
        "Events and unexpected errors",
        "Kubernetes Events by outcome, and unexpected errors (bugs in wasmer) outside of reconciles, by work. The log has the traceback.",
        (rate("autowasm_events_total", "outcome"), "events {{outcome}}"),
        (rate("autowasm_unexpected_errors_total", "work"), "error in {{work}}"),
        unit="ops",
    ),
    graph(
        "Unreadable configuration files",
        "Files in the config directory that cannot be read or parsed (standalone mode).",
        (f"sum(autowasm_config_files_unreadable{{{S}}})", "files"),
    ),
    graph(
        "Service",
        "1 while the Service that EnvoyFilters name is not usable, by reason.",
        (f"max by (reason) (autowasm_service_problem{{{S}}})", "{{reason}}"),
    ),
    graph(
        "API server: objects",
        "Objects in the informers' stores, by resource.",
        ("max by (resource) (autowasm_informer_objects)", "{{resource}}"),
    ),
    graph(
        "API server: lists and ended watches",
        "Lists and ended watches per second, by resource and reason.",
        (
            rate("autowasm_reflector_lists_total", "resource, reason"),
            "list {{resource}} {{reason}}",
        ),
        (
            rate("autowasm_reflector_watches_total", "resource, reason"),
            "watch {{resource}} {{reason}}",
        ),
        unit="ops",
    ),
    graph(
        "API server: time since the last event",
        "Time since the last watch event or bookmark, by resource.",
        ("max by (resource) (autowasm_informer_last_event_age_seconds)", "{{resource}}"),
        unit="s",
        steps=((None, "transparent"), (600, "red")),
        alerts=("AutoWasmWatchSilent",),
    ),
    graph(
        "Event loop",
        "Longest iteration between two scrapes, and the 99th percentile.",
        (f"max by (instance) (autowasm_loop_longest_turn_seconds{{{S}}})", "longest {{instance}}"),
        (quantile(0.99, "autowasm_loop_turn_duration_seconds"), "99%"),
        unit="s",
        steps=((None, "transparent"), (0.05, "red")),
        alerts=("AutoWasmLoopBlocked",),
    ),
    graph(
        "CPU",
        "CPU time, as a share of one core.",
        (
            f"sum by (instance) (rate(process_cpu_seconds_total{{{S}}}[{W}]) "
            "and on (instance) autowasm_build_info)",
            "{{instance}}",
        ),
        unit="percentunit",
    ),
    graph(
        "Memory",
        "Resident memory.",
        (
            f"sum by (instance) (process_resident_memory_bytes{{{S}}} "
            "and on (instance) autowasm_build_info)",
            "{{instance}}",
        ),
        unit="bytes",
    ),
)

PREFLIGHT = (
    graph(
        "Verdicts",
        "Modules that were started before publication, per second, by outcome. Unknown: no verdict.",
        (rate("autowasm_preflight_judgements_total", "outcome"), "{{outcome}}"),
        unit="ops",
    ),
    graph(
        "No verdict",
        "Pre-flights without a verdict per second, by reason, and restarts of the fork server. It is not the module's fault.",
        (rate("autowasm_preflight_failures_total", "reason"), "{{reason}}"),
        (rate("autowasm_preflight_server_restarts_total"), "restarts of the fork server"),
        unit="ops",
        alerts=("AutoWasmPreflightsFail",),
    ),
    graph(
        "Duration",
        "99th percentile of the duration of a child process, by work.",
        (quantile(0.99, "autowasm_preflight_duration_seconds", "work"), "{{work}}"),
        unit="s",
    ),
    graph(
        "Running and waiting",
        "Pre-flights that run, and those that wait for a child process.",
        (f"sum(autowasm_preflight_running{{{S}}})", "running"),
        (f"sum(autowasm_preflight_waiting{{{S}}})", "waiting"),
    ),
    graph(
        "Compiled modules",
        "Bytes of compiled modules on disk.",
        (f"sum by (instance) (autowasm_preflight_code_bytes{{{S}}})", "{{instance}}"),
        unit="bytes",
    ),
    graph(
        "Damaged compiled modules",
        "Compiled modules whose bytes had changed, per second. They are compiled again.",
        (rate("autowasm_preflight_code_damaged_total"), "damaged"),
        unit="ops",
    ),
)

ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": OVERVIEW,
    "Not Synced": NOT_SYNCED,
    "Data path: wasmer and Envoy": DATA_PATH,
    "Fetching and storing modules": FETCHING,
    "Pre-flight": PREFLIGHT,
    "Rollout": ROLLOUT,
    "Controller": CONTROL,
}
