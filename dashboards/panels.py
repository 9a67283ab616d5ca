"""What the dashboard shows, as values: rows of panels with their queries.

Not Grafana's form of it (`grafana.py`). Invariant: every query has data while wasmer and Envoy run and are scraped; windows
are Grafana's own.
"""

from dashboards.queries import N, Panel, Query, S, W, graph, number, quantile, rate

OVERVIEW = (
    number("AutoWasms", "max(sum by (instance) (autowasm_autowasms))", "All that there are."),
    number("Synced", "autowasm:synced:ratio", "Share that is as it was asked for.", "percentunit"),
    number("Replicas", f"count(autowasm_build_info{{{S}}})", "That are scraped."),
    number("Leaders", "sum(autowasm_leader)", "One; 0 means that nothing is acted upon."),
    number(
        "Errors to sidecars",
        "autowasm:blob_errors:ratio_rate5m",
        "Share of answers of the blob port that are errors of ours.",
        "percentunit",
    ),
    number(
        "Budget in use",
        f"max(autowasm_blob_pinned_bytes{{{S}}} / autowasm_blob_budget_bytes{{{S}}})",
        "Published modules, which are never evicted.",
        "percentunit",
    ),
    graph(
        "AutoWasms by phase",
        "Every replica counts all of them.",
        ("max by (phase) (autowasm_autowasms)", "{{phase}}"),
    ),
    graph(
        "Age of tags",
        "AutoWasms by when their tag was last resolved to the module in use.",
        ("max by (le) (autowasm_tag_age_seconds_bucket)", "up to {{le}} s"),
    ),
    graph(
        "Build",
        "Versions that run.",
        (f"count by (version, python) (autowasm_build_info{{{S}}})", "{{version}} on {{python}}"),
    ),
)

NOT_SYNCED = (
    Panel(
        "Not Synced, and for how long",
        (
            Query(
                "max by (autowasm_namespace, autowasm, phase, reason) (time() - "
                f"autowasm_not_synced_since_timestamp_seconds{{{N}}})"
            ),
        ),
        "At most a hundred, the longest first. `wasmc explain NAME` says what to do.",
        kind="table",
        unit="s",
        width=16,
    ),
    graph(
        "Failed fetches by reason",
        "Reasons as in the conditions.",
        (rate("autowasm_fetches_total", "reason", 'reason!="Success"'), "{{reason}}"),
        unit="ops",
    ),
)

FETCHING = (
    graph(
        "Time to get a module",
        "Half of them, and 99 of 100, by stage.",
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
        "By outcome.",
        (rate("autowasm_fetches_total", "kind, reason"), "{{kind}} {{reason}}"),
        unit="ops",
    ),
    graph(
        "Bytes from sources and peers",
        "As received.",
        (rate("autowasm_fetched_bytes_total", "kind"), "{{kind}}"),
        (rate("autowasm_peer_bytes_total"), "other replicas"),
        unit="Bps",
    ),
    graph(
        "Fetches under way",
        "And sources whose requests are paused after failures.",
        (f"sum(autowasm_fetches_running{{{S}}})", "running"),
        (f"sum(autowasm_fetches_waiting{{{S}}})", "waiting"),
        (f"sum(autowasm_circuit_breakers_open{{{S}}})", "circuit breakers open"),
    ),
    graph(
        "Requests to sources",
        "A second, by host that flags or the policy file name: logins, manifests, modules, polls.",
        (rate("autowasm_source_requests_total", "host"), "{{host}}"),
    ),
    graph(
        "Store",
        "Bytes, of those published, and what there may be.",
        (f"max(autowasm_blob_bytes{{{S}}})", "stored"),
        (f"max(autowasm_blob_pinned_bytes{{{S}}})", "published"),
        (f"min(autowasm_blob_budget_bytes{{{S}}})", "budget"),
        unit="bytes",
    ),
    graph(
        "Free on the volume",
        "Of the replica with the least.",
        (f"min(autowasm_storage_free_bytes{{{S}}})", "free"),
        unit="bytes",
    ),
    graph(
        "Blobs",
        "In the store, published, evicted, refused.",
        (f"max(autowasm_blobs{{{S}}})", "stored"),
        (f"max(autowasm_blobs_pinned{{{S}}})", "published"),
        (rate("autowasm_blobs_damaged_total"), "damaged /s"),
    ),
)

DATA_PATH = (
    graph(
        "Answers to sidecars",
        "By method and status.",
        (rate("autowasm_blob_responses_total", "method, status"), "{{method}} {{status}}"),
        unit="reqps",
    ),
    graph(
        "Where modules were",
        "On disk, brought from a peer or the origin while the sidecar was held, or not known.",
        (rate("autowasm_blob_cache_requests_total", "kind"), "{{kind}}"),
        unit="reqps",
    ),
    graph(
        "Held requests and sends",
        "Now.",
        (f"sum(autowasm_blob_requests_held{{{S}}})", "held"),
        (f"sum(autowasm_blob_sends{{{S}}})", "sends"),
    ),
    graph(
        "Bytes to sidecars",
        "Handed to the kernel.",
        (rate("autowasm_blob_served_bytes_total"), "bytes"),
        unit="Bps",
    ),
    graph(
        "Envoy: loading of modules",
        "Envoy's own: fetches, and what its cache of codes had.",
        (f"sum(rate(envoy_wasm_remote_load_fetch_successes[{W}]))", "fetched"),
        (f"sum(rate(envoy_wasm_remote_load_fetch_failures[{W}]))", "not fetched"),
        (f"sum(rate(envoy_wasm_remote_load_cache_hits[{W}]))", "cache hits"),
        (f"sum(rate(envoy_wasm_remote_load_cache_misses[{W}]))", "cache misses"),
        unit="ops",
    ),
    graph(
        "Envoy: requests that a filter failed",
        "response_code_details=wasm_fail_stream: a module that did not load, or trapped.",
        (
            f'sum(rate(istio_requests_total{{response_code_details="wasm_fail_stream"}}[{W}]))',
            "wasm_fail_stream",
        ),
        (f"sum(rate(istio_requests_total[{W}]))", "all"),
        unit="reqps",
    ),
)

ROLLOUT = (
    graph(
        "Pods by what they fetched",
        "Of those that AutoWasms match; the leader tells.",
        ("max by (state) (autowasm_rollout_pods)", "{{state}}"),
    ),
    graph(
        "Rollouts under way",
        "AutoWasms of which not all sidecars are known to have fetched the module.",
        ("max(autowasm_rollout_unfinished)", "unfinished"),
    ),
    graph(
        "Time of rollouts",
        "From a changed EnvoyFilter to the last download: rollouts by how long they took.",
        ("max by (le) (autowasm_rollout_duration_seconds_bucket)", "up to {{le}} s"),
    ),
)

CONTROL = (
    graph(
        "Reconciles",
        "By result.",
        (rate("autowasm_reconcile_duration_seconds_count", "result"), "{{result}}"),
        unit="ops",
    ),
    graph(
        "Time of reconciles",
        "99 of 100: waiting for a worker, and with one.",
        (quantile(0.99, "autowasm_workqueue_queue_duration_seconds"), "waiting"),
        (quantile(0.99, "autowasm_workqueue_work_duration_seconds"), "working"),
        (f"max(autowasm_workqueue_longest_running_seconds{{{S}}})", "longest now"),
        unit="s",
    ),
    graph(
        "Work queue",
        "Keys.",
        (f"sum(autowasm_workqueue_depth{{{S}}})", "waiting"),
        (f"sum(autowasm_workqueue_delayed{{{S}}})", "due later"),
        (rate("autowasm_workqueue_retries_total"), "retries /s"),
    ),
    graph(
        "Events and faults",
        "Kubernetes Events by outcome; faults of wasmer outside of reconciles, by work (the log has the traceback).",
        (rate("autowasm_events_total", "outcome"), "events {{outcome}}"),
        (rate("autowasm_unexpected_errors_total", "work"), "fault in {{work}}"),
        unit="ops",
    ),
    graph(
        "Files that cannot be read",
        "Standalone mode: of the config directory, now.",
        (f"sum(autowasm_config_files_unreadable{{{S}}})", "files"),
    ),
    graph(
        "Service",
        "1 while something is wrong with the Service that EnvoyFilters name.",
        (f"max by (reason) (autowasm_service_problem{{{S}}})", "{{reason}}"),
    ),
    graph(
        "API server: objects",
        "In the informers' stores.",
        ("max by (resource) (autowasm_informer_objects)", "{{resource}}"),
    ),
    graph(
        "API server: lists and ends of watches",
        "By resource and reason.",
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
        "API server: silence",
        "Time since it last said anything.",
        ("max by (resource) (autowasm_informer_last_event_age_seconds)", "{{resource}}"),
        unit="s",
    ),
    graph(
        "Event loop",
        "The longest turn between two scrapes, and 99 of 100 turns.",
        (f"max by (instance) (autowasm_loop_longest_turn_seconds{{{S}}})", "longest {{instance}}"),
        (quantile(0.99, "autowasm_loop_turn_duration_seconds"), "99%"),
        unit="s",
    ),
    graph(
        "Processor",
        "Share of one.",
        (
            f"sum by (instance) (rate(process_cpu_seconds_total{{{S}}}[{W}]) "
            "and on (instance) autowasm_build_info)",
            "{{instance}}",
        ),
        unit="percentunit",
    ),
    graph(
        "Memory",
        "Resident.",
        (
            f"sum by (instance) (process_resident_memory_bytes{{{S}}} "
            "and on (instance) autowasm_build_info)",
            "{{instance}}",
        ),
        unit="bytes",
    ),
)

ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": OVERVIEW,
    "What is not Synced": NOT_SYNCED,
    "Data path: wasmer and Envoy": DATA_PATH,
    "Getting and keeping modules": FETCHING,
    "Rollout": ROLLOUT,
    "Control": CONTROL,
}
