"""Fixed bounds on input, requests, stored data and concurrent work, each with its reason.

This file has the bounds on received data, the blob port, the store, fetches, the event loop, the Kubernetes API, the pre-flight,
the download log and readings of statistics; only `FetchLimits.total` has a flag. `settings.py` has all other numbers with a
flag, and the numbers of polls, resends, load and run reports, and peers, with or without one. Invariant: a bound that a test
lowers, or that several modules share, is a field in one of the two files; a constant of one module stays there.
"""

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024

ENVOY_MODULE_LIMIT: Final = 33_554_432
"""Bytes. Envoy buffers a fetched module whole; one byte more fails the fetch permanently (its limit is 32 MiB)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on data that wasmer receives. Seconds and bytes. Tests lower them; users do not need to."""

    module_bytes: int = ENVOY_MODULE_LIMIT
    layer_bytes: int = 64 * MIB
    """A compressed layer or object: twice the largest module, because an image may have other files."""
    unpacked_bytes: int = 256 * MIB
    """Bytes that one archive may unpack to during the search for the module."""
    unpacked_ratio: int = 200
    """Unpacked bytes per packed byte, past the first `ratio_grace_bytes`. A Wasm file with padding reaches about 100."""
    ratio_grace_bytes: int = 40 * MIB
    """Unpacked bytes below which the ratio is not checked. A valid module of the largest size may be nearly all padding (gzip:
    1000 to 1), and unpacking so little is harmless."""
    archive_nesting: int = 3
    """gzip in tar in gzip is the deepest nesting known in practice."""
    archive_entries: int = 10_000
    archive_metadata_bytes: int = MIB
    """One tar header extension (long name, pax). In practice they are below 4 KiB."""
    archive_pax_records: int = 100_000
    """In all headers of one archive: ten for each entry. Each record takes about a microsecond."""
    archive_name_bytes: int = 4096
    """A longer name cannot be a path on Linux (PATH_MAX), so the entry cannot be the module."""
    gzip_members: int = 100_000
    """In one stream. Block gzip has one for each 64 KiB, eStargz a few for each file. Millions of empty members are an attack."""
    zstd_window_bytes: int = 32 * MIB
    """Memory that a zstd frame may require. `zstd -19` and all image builders use 8 MiB at most."""
    image_layers: int = 128
    """Docker allows 127."""
    image_bytes: int = 256 * MIB
    """Compressed size of all layers that are searched for the module."""
    image_entries: int = 100_000
    """Names kept in memory while layers are searched, because files of later layers hide those of earlier ones: about 10 MB."""
    index_entries: int = 1_000
    """Platforms and attestations in one index. The largest official images have about 30."""
    index_searched: int = 8
    """Manifests of one index that are fetched to find the one with a module, if no entry identifies it."""
    listed_tags: int = 100_000
    """`wasmc tags`. Registries have a few thousand tags in a repository."""
    manifest_bytes: int = 4 * MIB
    """The distribution specification requires registries to accept manifests of at least this size."""
    manifest_quotes: int = 100_000
    """Quotation marks in one manifest, so half as many strings. An index with 1000 entries has fewer. Decoding blocks the
    interpreter."""
    docker_config_parts: int = 10_000
    """Values in one docker config; a registry has about two. It is decoded on the loop, where this many take 10 ms."""
    token_bytes: int = 256 * 1024
    """The response of a token endpoint. In practice it is below 16 KiB, even with many groups in the token. Decoding 1 MiB would
    block the interpreter."""
    redirects: int = 5
    imports: int = 10_000
    exports: int = 100_000
    export_bytes: int = 10 * MIB
    """The export section: 100 000 names of 100 bytes. Freeing more strings than that blocks the interpreter for 20 ms."""
    sections: int = 10_000
    """Real modules have fewer than 100. Millions of empty custom sections are a denial of service."""
    types: int = 100_000
    """Large modules have a few thousand."""
    type_parts: int = 1_000_000
    """Fields and reference types in the types that are read one by one: about a second."""
    body_bytes: int = 8 * MIB
    """Function bodies that AutoWasm's own parser reads, which few modules need: about four seconds."""
    function_names: int = 1_000_000
    """Entries of the name section, which Envoy reads. V8 allows as many functions."""
    memory_pages: int = 16_384
    """Initial memory, in pages of 64 KiB. V8 in Envoy allows 1 GiB; a module with one page more fails to load (verified with
    1.36 and 1.40)."""
    memory_pages_64: int = 262_144
    """Maximum pages of a 64-bit memory. V8's limit (verified with Envoy 1.36 and 1.40), which wasmtime does not check."""
    table_entries: int = 10_000_000
    """Initial entries of all tables together. V8 allows this many for one table (verified with Envoy 1.36 and 1.40); seven such
    tables abort the proxy."""
    name_bytes: int = 1024
    """One import or export name, in messages and in memory."""

    connect_timeout: float = 5.0
    answer_timeout: float = 30.0
    """One manifest, token or HEAD response; also the first byte of a blob (registries may read it from cold storage)."""
    fetch_timeout: float = 300.0
    """A whole fetch with all its requests."""
    minimum_rate: int = 64 * 1024
    """Bytes per second. At a lower rate a 32 MiB module could not finish within `fetch_timeout`."""
    minimum_rate_after: float = 10.0
    """Grace period, and window over which the rate is measured."""
    error_body_timeout: float = 2.0
    """For the first 16 KiB of the body of an error response. They normally arrive with the header, and the status is already
    known."""
    dns_timeout: float = 5.0
    attempts: int = 3
    """Attempts within one fetch after temporary errors, such as 503 or a broken connection. After that the work queue retries."""
    attempt_backoff: float = 0.5
    attempt_wait: float = 5.0
    """If a server requires a longer pause than this, the fetch fails and the work queue retries after the pause."""
    transfer_chunk: int = MIB
    """One read from a socket and one write to disk; also the memory that a transfer uses."""
    thread_return: float = 2.0
    """Seconds that a transfer's thread may take to end after its sockets are shut down. A thread that takes longer is reported
    and abandoned."""
    credential_helper_timeout: float = 30.0
    """`wasmc` only. A docker credential helper may prompt for a fingerprint or for the password of a key ring."""
    login_refusals: int = 2
    """Consecutive refusals of one credential by one registry, after which it is not sent for a while. Registries lock accounts
    after 3 to 10."""
    login_pause: float = 300.0
    """Seconds for which a refused credential is not sent at first. Doubles up to `max_login_pause`. A rotated Secret is used
    at once."""
    max_login_pause: float = 1800.0
    max_rate_pause: float = 60.0
    """Longest pause after 429 responses without `Retry-After`. It doubles from `attempt_backoff` up to this."""
    proxy_answer_bytes: int = 16 * 1024
    """Response of a proxy to CONNECT. In practice it is below 1 KiB."""
    idle_registries: int = 32
    """Registry connections (with their token) kept open for the next request to the same repository."""

    spec_bytes: int = MIB
    """One AutoWasm as JSON or YAML. etcd rejects objects above 1.5 MiB."""


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """Bounds on clients of wasmer's ports. Seconds, bytes, counts."""

    request_timeout: float = 15.0
    """Time for a client to send a complete request header. It starts with the connection, or with the first byte of a later
    request."""
    keepalive_timeout: float = 3_630.0
    """Longer than Envoy's connection pool keeps an idle connection (1 h), so that Envoy closes it first, not wasmer."""
    send_base: float = 30.0
    """Deadline of a send, plus one second for each `send_rate` bytes."""
    send_rate: int = 64 * 1024
    sendfile_chunk: int = 512 * 1024
    """Bytes of one sendfile call. Larger calls block the loop for longer and are no faster, as measured."""
    copies: int = 8
    """`sendfile` calls in one iteration of the loop, over all sends, besides the first call of each send."""
    accepts: int = 64
    """Connections accepted in one iteration of the loop: about 2 ms."""
    backlog: int = 4096
    """Thousands of sidecars may connect within one second. A backlog of 128 drops SYNs, which delays them by 1 to 3 s."""
    held_known: float = 10.0
    """How long a request for a known digest is held if the client sends no timeout."""
    max_held_known: float = 60.0
    held_margin: float = 0.5
    """Time before the client's timeout at which wasmer answers, so that the client gets the 503 with its reason."""
    held_unknown: float = 3.0
    held_unknown_count: int = 256
    """Concurrently held requests for unknown digests. Further ones get 404 at once, because clients can invent digests."""
    held_retry: float = 0.5
    max_held_retry: float = 5.0
    """Longest delay before a fill that got no response is retried while requests wait for the blob. It doubles from
    `held_retry`."""
    held_refused_retry: float = 10.0
    """Delay before a fill that was refused is retried. A source rarely changes such an answer quickly."""
    unread_body: float = 1.0
    """Seconds for which the body of a request is read and discarded after the response, so that the client receives it."""
    settle: float = 1.0
    """Shutdown: time for an open connection to send its first request."""
    finish_sends: float = 30.0
    """Shutdown: time for sends in flight to finish."""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds on the blob store's use of file descriptors and the disk. Counts, seconds, bytes."""

    open_files: int = 512
    """Blobs whose files stay open; the least recently used is closed first. A mesh rarely uses more modules at a time."""
    cold_after: float = 60.0
    """A blob that was not served for this long is read into the page cache before it is sent. Otherwise sendfile would block on
    the disk."""
    verify_pause: float = 0.02
    """Pause between two blobs in the check after a start. The first requests need the disk and the CPU, too."""
    damaged_age: float = 7 * 24 * 3600.0
    """Seconds for which a damaged blob is kept for analysis. It is removed at once if the disk is full."""
    staging_age: float = 3600.0
    """Seconds after which staged files without an owner are removed. Longer than any fetch."""
    sweep_every: float = 30.0
    """Time between two runs of the eviction, or a twentieth of the grace period if that is shorter."""
    save_every: float = 60.0
    """Shortest time between two writes of the last uses, if the set of needed blobs changed."""
    save_latest: float = 900.0
    """Longest time between two writes of the last uses. A crash loses at most this much running time."""
    held: float = 60.0
    """Seconds for which a blob that was just stored or requested is kept until its EnvoyFilter is written."""
    pins_timeout: float = 30.0
    """Seconds after a start for which the admission of a new module waits until all published modules of its namespace are
    known."""
    free_reserve: int = 64 * MIB
    """Bytes of the volume that stay free. Renames, the last uses and other programs need some space."""
    free_reserve_share: float = 0.02
    """The same as a fraction of the volume. The smaller of the two applies."""
    damaged_kept: int = 8
    """Damaged blobs that are kept for analysis; the oldest is removed first."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How many fetches run at once (ADR 11), and when failed fetches are retried."""

    per_namespace_host: int = 2
    per_namespace: int = 4
    per_host: int = 4
    total: int = 32
    reserved: int = 8
    """Places of `total` that only namespaces without a running fetch get. Otherwise eight namespaces whose sources hang could
    take all slots."""
    long_after: float = 15.0
    """Seconds after which a fetch no longer counts against `per_host`: the 10 s of `minimum_rate_after`, plus a margin."""
    long: int = 16
    """Fetches that may exceed `long_after`: half of `total`, so that slots remain for other fetches."""
    queued: int = 10_000
    """Fetches that wait for a slot: enough for a cluster with 10 000 AutoWasms."""
    retry_base: float = 1.0
    retry_maximum: float = 300.0
    not_found_first: float = 15.0
    """Doubles up to `not_found_retry`. An AutoWasm is often applied shortly before the push of its image is complete."""
    not_found_retry: float = 300.0
    denied_retry: float = 300.0
    """Seconds after a refused login or an unusable pull Secret until the fetch is tried again, because Secrets are not watched. After
    repeated refusals, `login_pause` and `breaker_open` apply, too."""
    secret_recheck: float = 300.0
    """Seconds until the Secret of a published module is read again: the longest time until a revoked Secret is detected."""
    storage_retry: float = 30.0
    """Longest delay after the disk of wasmer was full or failed. Such retries send no requests to the source."""
    breaker_failures: int = 5
    """Consecutive failures of one (host, repository, credential) that open its circuit breaker for `breaker_open`."""
    breaker_open: float = 60.0


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """Work in one iteration of the event loop, and the length above which it counts as blocked. Seconds and counts."""

    switch: float = 0.001
    """Switch interval of the interpreter: a thread that parses yields to the loop after this time. With Python's default of 5 ms,
    each wake-up takes up to 10 ms."""
    ready: int = 8
    """Sockets handled in one iteration. A send takes 0.1 to 0.4 ms, and Lease renewals and probes wait until the iteration ends."""
    blocked: float = 0.05
    """Iterations longer than this are logged. Requests of sidecars and probes of the kubelet wait meanwhile."""
    quiet: float = 10.0
    """Shortest time between two of these log lines, so that an overloaded loop does not fill the log."""


@dataclass(frozen=True, slots=True)
class KubeLimits:
    """Bounds on requests to the Kubernetes API and on its responses. Seconds, bytes, counts."""

    call_timeout: float = 30.0
    """One call except watches, including the body. kubectl and client-go have no such timeout and hang if the server does not
    respond."""
    connect_timeout: float = 5.0
    credentials_timeout: float = 60.0
    """Loading the configuration, including exec plugins. These may open a browser or call a cloud provider."""
    credentials_every: float = 60.0
    """Time between two reads of tokens and certificate authorities. The kubelet renews them minutes before they expire."""
    min_credentials_interval: float = 10.0
    """Shortest time between two reads. After a 401 or a certificate error they are read at once, except within this time."""
    body_bytes: int = 64 * MIB
    """One response. 500 Pods are 6 MB. 500 objects of the largest size that etcd accepts are far more and are rejected."""
    line_bytes: int = 64 * MIB
    """One watch event. The limit of 1.5 MiB for an object in etcd is a default and may be raised."""
    object_values: int = 50_000
    """Values in one custom resource, which is decoded in one piece: about 15 ms. Every resource that wasmer accepts or writes has
    fewer (`api/pluginconfig.py`)."""
    page_bytes: int = 8 * MIB
    """One list page with several objects. 500 Pods are 6 MB. A larger page is requested again with fewer objects."""
    page_size: int = 500
    """Objects in one list page. Decoding it blocks the loop for about 5 ms."""
    watch_timeout: float = 300.0
    """Watches request a timeout between once and twice this, at random, so that they move to new API servers."""
    watch_grace: float = 30.0
    """Time after the requested timeout before wasmer closes a watch without events."""
    bookmark_silence: float = 180.0
    """A server that sends bookmarks sends one every minute. Three missing bookmarks indicate a dead connection."""
    initial_silence: float = 10.0
    """A streaming list without events for this long is treated as unsupported. Some servers ignore the parameter."""
    relist_after_empty: int = 3
    """Consecutive watches without events at the same resourceVersion before a new list. The server may have lost the version
    silently."""
    relist_after_errors: float = 60.0
    """Seconds for which resuming a watch fails with server errors before a new list."""
    loop_budget: float = 0.001
    """Events are processed for this long before control returns to the loop, so that a burst does not block it."""
    pods_pause: float = 0.2
    """Changes of Pods are read in batches at this interval while they are few. A wake-up costs ten times as much as processing one
    change, and no change is urgent within seconds."""
    echo_pause: float = 0.02
    """The same for AutoWasms and EnvoyFilters. While wasmer writes, most changes are its own. The first change is read at once."""
    resync: float = 600.0
    """Time between two deliveries of all objects to the handlers. Corrects the effects of lost updates."""
    events_queued: int = 1_000
    """Kubernetes Events that wait to be written. Further ones are dropped; they are informational only."""
    events_burst: int = 25
    events_refill: float = 300.0
    """Per object: `events_burst` Events at once, then one in this many seconds (client-go's spam filter)."""
    events_rate: float = 10.0
    """Events written per second, after a first `events_burst`, while the work queue has keys. At a start with thousands of
    objects, Events must not double the load of the API server. Without work, Events are written at once."""
    events_flush: float = 5.0
    """Shutdown: seconds for queued Events to be written while sends finish. A full queue takes about this long."""
    events_remembered: int = 4_096
    """Events and objects that the de-duplication keeps."""


@dataclass(frozen=True, slots=True)
class PreflightLimits:
    """Bounds on the child processes that compile and run modules before they are published. Seconds, bytes, counts."""

    total: int = 2
    """Children at a time, in all; each namespace has one at most, and one at most compiles. The memory limit of the chart is for
    two of `run_memory` and `compile_memory`."""
    queued: int = 10_000
    """Requests that wait for a child: enough for a cluster with 10 000 AutoWasms."""
    run_seconds: float = 2.0
    """Wall time of a run. Real filters take milliseconds; fuel ends an endless loop after about 0.4 s."""
    run_fuel: int = 200_000_000
    """Instructions of the start and, again, of the first request. Real filters use up to 4 million to start."""
    compile_seconds: float = 45.0
    """Wall time of a compilation. A module of 1.9 MB takes 1 s of one core, one of 9.4 MB at most 7 s."""
    run_memory: int = 256 * MIB
    """Resident memory of a child that runs a module. The interpreter takes 27 MiB of it, the start of a Go filter 6."""
    compile_memory: int = 256 * MIB
    """Resident memory of a child that compiles. A module of 2.5 MB takes 100 MiB, one of 9.4 MB 230. A larger one has no verdict:
    more would have to be granted to every replica, and stay unused in almost all."""
    address_memory: int = 1536 * MIB
    """Writable memory that a child may allocate, whether it uses it or not: the 1 GiB that Envoy gives a module, and the rest of the
    child. If less were given, a module that reserves a lot would fail here and not in Envoy."""
    code_bytes: int = 160 * MIB
    """Compiled code of one module; it is 3 times as large as the module, up to 5 times for some."""
    request_bytes: int = 8 * MIB
    """A configuration of 1 MiB, quoted."""
    log_bytes: int = 32 * 1024
    """Log lines of the module that a verdict keeps, the last ones."""
    log_line_bytes: int = 4 * 1024
    answer_bytes: int = 512 * 1024
    """A verdict with its log lines, quoted."""
    start_seconds: float = 10.0
    """Time for the fork server to import everything, which takes 0.1 s of one core."""
    grace_seconds: float = 5.0
    """Time after the deadline of a child for the fork server to report its end. Otherwise the fork server is restarted."""
    restart_base: float = 0.2
    restart_maximum: float = 60.0
    """Delays before the fork server is started again, by the number of failures in a row."""
    verdicts: int = 2_000
    """Verdicts that are kept in memory."""
    verdict_bytes: int = 4 * MIB
    """The same in bytes of their JSON."""


@dataclass(frozen=True, slots=True)
class DownloadLogLimits:
    """Bounds on the download log. An address takes about 150 bytes."""

    digests: int = 1_000
    addresses: int = 50_000
    """Addresses for one digest; the least recently seen is removed first."""


@dataclass(frozen=True, slots=True)
class StatsLimits:
    """Bounds on readings of sidecars' statistics. Seconds, bytes, counts."""

    rate: float = 50.0
    """Sidecars read per second in all, however many AutoWasms need a reading: 1000 Pods take 20 s."""
    burst: int = 1
    """Readings that may begin at once after a pause."""
    concurrent: int = 64
    """Requests in flight. More than `rate` times the usual duration of a request; fewer than `rate` times `deadline`, so that Pods
    that do not answer slow the readings down instead of collecting connections."""
    deadline: float = 3.0
    """One request, with its connection and the whole response. An Envoy answers within milliseconds."""
    page_bytes: int = MIB
    """One response. Without traffic it is 2 KiB; each pair of a client's workload and a status adds about 1 KiB."""
