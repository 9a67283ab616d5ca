"""Fixed bounds on input, requests, stored data and concurrent work, each with its reason.

Only `FetchLimits.total` has a flag. Invariant: no bound of this kind is written anywhere else.
Not what an operator sets (see `settings.py`).
"""

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024

ENVOY_MODULE_LIMIT: Final = 33_554_432
"""Bytes. Envoy buffers a fetched module whole; one byte more fails the fetch for good (research: 32 MiB hard limit)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what others send us. Seconds and bytes. Tests lower them; users do not need to."""

    module_bytes: int = ENVOY_MODULE_LIMIT
    layer_bytes: int = 64 * MIB
    """A compressed layer or object: twice the module, for what an image carries besides."""
    unpacked_bytes: int = 256 * MIB
    """All that one archive may unpack to while we look for the module."""
    unpacked_ratio: int = 200
    """Unpacked per packed byte, past the first `ratio_grace_bytes`. Wasm with padding reaches about 100."""
    ratio_grace_bytes: int = 40 * MIB
    """An honest module of the greatest size may be nearly all padding (gzip: 1000 to 1); unpacking it harms nobody."""
    archive_nesting: int = 3
    """gzip in tar in gzip is the deepest that anyone publishes."""
    archive_entries: int = 10_000
    archive_metadata_bytes: int = MIB
    """One tar header extension (long name, pax): real ones are below 4 KiB."""
    archive_pax_records: int = 100_000
    """In all headers of one archive: ten for an entry; each costs about a microsecond."""
    archive_name_bytes: int = 4096
    """A longer name cannot be a path on Linux (PATH_MAX): such an entry is never the module."""
    gzip_members: int = 100_000
    """Of one stream: block gzip has one for 64 KiB, estargz a few for each file; millions of empty ones are an attack."""
    zstd_window_bytes: int = 32 * MIB
    """Memory that a zstd frame may ask for; `zstd -19` and every image builder stay at 8 MiB."""
    image_layers: int = 128
    """Docker's own limit is 127."""
    image_bytes: int = 256 * MIB
    """All layers that have to be searched for a module, compressed."""
    image_entries: int = 100_000
    """Names kept while layers are searched, because later layers hide earlier ones: about 10 MB."""
    index_entries: int = 1_000
    """Platforms and attestations of one index; the largest official images have about 30."""
    index_looks: int = 8
    """Manifests of one index that are read to find the one with a module, where no entry says so."""
    manifest_bytes: int = 4 * MIB
    """The distribution specification asks registries to take manifests of at least this size."""
    manifest_quotes: int = 100_000
    """`"` in one manifest, so half as many strings: an index of 1000 entries has less. Decoding holds the interpreter."""
    docker_config_parts: int = 10_000
    """Values in one docker config, some two for each registry: it is decoded on the loop, where more take 10 ms."""
    token_bytes: int = 256 * 1024
    """A token endpoint's answer: below 16 KiB, also with many groups in it. Decoding a whole MiB holds the interpreter."""
    redirects: int = 5
    imports: int = 10_000
    exports: int = 100_000
    export_bytes: int = 10 * MIB
    """The export section: 100 000 names of 100 bytes. To drop more text than that holds the interpreter for 20 ms."""
    sections: int = 10_000
    """Real modules have fewer than 100; millions of empty custom ones are an attack on our time."""
    types: int = 100_000
    """Large modules have a few thousand."""
    type_parts: int = 1_000_000
    """Fields and reference types in them that have to be read one by one: about a second."""
    body_bytes: int = 8 * MIB
    """Function bodies that are read by our own code, of the few modules that need it: about four seconds."""
    function_names: int = 1_000_000
    """Entries of the name section that Envoy reads; as many as V8 allows functions."""
    memory_pages: int = 16_384
    """Of 64 KiB, at the start. Envoy's V8 gives a module 1 GiB; one page more fails to load (seen on 1.36 and 1.40)."""
    memory_pages_64: int = 262_144
    """That a 64-bit memory may grow to: V8's limit (seen on Envoy 1.36 and 1.40), which wasmtime does not know."""
    table_entries: int = 10_000_000
    """At the start, of all tables together. V8's limit for one (seen on Envoy 1.36 and 1.40); seven such abort the proxy."""
    name_bytes: int = 1024
    """One import or export name, as shown in messages and kept in memory."""

    connect_timeout: float = 5.0
    answer_timeout: float = 30.0
    """One manifest, token or HEAD answer; also the first byte of a blob (registries fetch from cold storage)."""
    fetch_timeout: float = 300.0
    """A whole fetch, all its requests together."""
    minimum_rate: int = 64 * 1024
    """Bytes a second; slower than this a 32 MiB module would not finish within `fetch_timeout` anyway."""
    minimum_rate_after: float = 10.0
    """Seconds of grace, and the window over which the rate is taken."""
    error_body_timeout: float = 2.0
    """For the first 16 KiB of an error's body: they come with the header or soon after, and the status is known already."""
    dns_timeout: float = 5.0
    attempts: int = 3
    """Tries inside one fetch, for answers that say "later" and broken connections. The queue retries after that."""
    attempt_backoff: float = 0.5
    attempt_wait: float = 5.0
    """A server that asks for a longer pause than this ends the fetch; the queue comes back then."""
    transfer_chunk: int = MIB
    """One read from a socket and one write to disk; also the memory that a transfer holds."""
    thread_return: float = 2.0
    """After its sockets are shut down, a transfer's thread is waited for this long, then reported and left behind."""
    credential_helper_timeout: float = 30.0
    """`wasmc` only: a docker credential helper may ask a person for a fingerprint or unlock a key ring."""
    login_refusals: int = 2
    """Refusals in a row of one credential by one registry, after which it is left alone: accounts are locked after 3 to 10."""
    login_pause: float = 300.0
    """Seconds for which it is left alone at first, doubling up to `max_login_pause`. A rotated Secret is asked with at once."""
    max_login_pause: float = 1800.0
    max_rate_pause: float = 60.0
    """Pause after answers 429 that name none, doubling from `attempt_backoff` up to this."""
    proxy_answer_bytes: int = 16 * 1024
    """What a proxy may say before a tunnel is open; real ones say less than 1 KiB."""
    idle_registries: int = 32
    """Registry connections (with their token) kept for the next request to the same repository."""

    spec_bytes: int = MIB
    """One AutoWasm as JSON or YAML; etcd refuses objects above 1.5 MiB."""


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """Bounds on what clients of our own ports may do. Seconds, bytes, counts."""

    request_timeout: float = 15.0
    """For a connection to send its first or next whole request header once it has begun."""
    keepalive_timeout: float = 3_630.0
    """Longer than Envoy's connection pool keeps an idle connection (1 h), so that Envoy, not we, closes first."""
    send_base: float = 30.0
    """A send may take this long plus one second for each `send_rate` bytes."""
    send_rate: int = 64 * 1024
    sendfile_chunk: int = 512 * 1024
    """Bytes for one sendfile call: larger ones hold the loop for longer and, as measured, send no faster."""
    copies: int = 8
    """`sendfile_chunk`s copied in one turn of the loop, of all sends together, beyond the first of each send."""
    accepts: int = 64
    """Connections taken in one turn of the loop, some 2 ms."""
    backlog: int = 4096
    """Thousands of sidecars connect in one second; 128 drops SYNs and costs them 1 to 3 s."""
    held_known: float = 10.0
    """How long a known digest is held where the client does not say how long it waits."""
    max_held_known: float = 60.0
    held_margin: float = 0.5
    """Answer this long before the client gives up, so that it sees our 503 and its reason."""
    held_unknown: float = 3.0
    held_unknown_count: int = 256
    """Requests for unknown digests held at a time; more are answered 404 at once: digests are easy to invent."""
    held_retry: float = 0.5
    max_held_retry: float = 5.0
    """Seconds before a fill that found no answer is tried again, doubling, while somebody waits for its blob."""
    held_refused_retry: float = 10.0
    """The same for a fill that was refused: the other side has decided, and will rarely decide anew at once."""
    unread_body: float = 1.0
    """Seconds for which a request's body is read and thrown away after the answer, so that the client sees it."""
    settle: float = 1.0
    """At stop: a connection that was made but has not yet brought its request gets this long."""
    finish_sends: float = 30.0
    """At stop: sends in flight get this long."""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How the blob store uses descriptors and the disk. Counts and seconds."""

    open_files: int = 512
    """Blobs kept open; the longest unused is closed first. A mesh rarely has more modules in use at a time."""
    cold_after: float = 60.0
    """A blob not served for so long is read into the page cache before it is sent: sendfile would block on the disk."""
    verify_pause: float = 0.02
    """Between two blobs of the check after a start, which must not starve the first requests of disk and processor."""
    damaged_age: float = 7 * 24 * 3600.0
    """Seconds after which a damaged blob has told its story; at once when the disk is full."""
    staging_age: float = 3600.0
    """Seconds after which work in progress that nobody knows of is removed: longer than any fetch."""
    sweep_every: float = 30.0
    """Between two looks at which blobs are still needed; a twentieth of a short grace period, if that is less."""
    save_every: float = 60.0
    """Last uses are written at most this often, and only if who is needed changed."""
    save_latest: float = 900.0
    """Last uses are written at least this often: what a crash on a fresh machine may forget of running time."""
    held: float = 60.0
    """A blob that was just stored or asked for stays this long for its EnvoyFilter to be written."""
    hear_all: float = 30.0
    """A new module waits so long after a start until it is known what else its namespace has published."""
    free_reserve: int = 64 * MIB
    """Bytes of the volume that no fetch may take: renames, the last uses, and other programs need some."""
    free_reserve_share: float = 0.02
    """The same as a share of a small volume; the lesser of the two holds."""
    damaged_kept: int = 8
    """Damaged blobs kept for people who want to know what happened to them; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How many fetches run at once (ADR 11), and how failures are spaced."""

    per_namespace_host: int = 2
    per_namespace: int = 4
    per_host: int = 4
    total: int = 32
    reserved: int = 8
    """Of `total`, places that only a namespace without any gets; else eight tenants that hang everywhere fill them all."""
    host_turn: float = 15.0
    """Seconds after which a fetch no longer counts for its host: the 10 s of grace for a slow body, and some."""
    long: int = 16
    """Fetches at most that have so left their host's count; half of `total`, so that others find places always."""
    queued: int = 10_000
    """Fetches waiting for a place; a cluster of 10 000 AutoWasms fits, an endless loop does not."""
    retry_base: float = 1.0
    retry_maximum: float = 300.0
    not_found_first: float = 15.0
    """Doubling up to `not_found_retry`: people apply the AutoWasm a moment before the push is through."""
    not_found_retry: float = 300.0
    denied_retry: float = 300.0
    secret_recheck: float = 300.0
    """Seconds until the Secret behind a published module is read again: how long a revoked one goes unnoticed."""
    storage_retry: float = 30.0
    """At most, after our own disk was full or failed: asking again costs the source nothing until there is room."""
    breaker_failures: int = 5
    """Failures in a row, on one (host, repository, credential), that stop further attempts for `breaker_open`."""
    breaker_open: float = 60.0


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """How much the event loop does at a time, and when it counts as held. Seconds and counts."""

    switch: float = 0.001
    """A thread that parses gives the interpreter to the loop after this; with Python's 5 ms each wake-up waits twice 5."""
    ready: int = 8
    """Sockets handled in one turn: a send costs 0.1 to 0.4 ms, and leases and probes wait for the turn's end."""
    blocked: float = 0.05
    """A turn longer than this is told: sidecars that fetch and the kubelet that asks for health wait meanwhile."""
    quiet: float = 10.0
    """Between two that are told: a loop that is always late must not fill the log as well."""


@dataclass(frozen=True, slots=True)
class KubeLimits:
    """Bounds on what we ask of the Kubernetes API and take from it. Seconds, bytes, counts."""

    call_timeout: float = 30.0
    """One call other than a watch, body included; kubectl and client-go have none, and hang with a silent server."""
    connect_timeout: float = 5.0
    credentials_timeout: float = 60.0
    """Reading the configuration, exec plugins included: they may ask a person's browser or a cloud."""
    credentials_every: float = 60.0
    """Tokens and certificate authorities are looked at again this often; kubelet renews them minutes ahead."""
    min_credentials_interval: float = 10.0
    """After a 401 or a certificate error at once, but never more often than this."""
    body_bytes: int = 64 * MIB
    """One answer. 500 Pods are 6 MB; 500 objects of the largest size that etcd takes are far more and refused."""
    line_bytes: int = 64 * MIB
    """One watch event; etcd's 1.5 MiB for an object is a default that people raise."""
    object_values: int = 50_000
    """Of one custom resource, decoded at once in some 15 ms. Any that we accept or write has fewer (`api/pluginconfig.py`)."""
    page_bytes: int = 8 * MIB
    """One list page of several objects; 500 Pods are 6 MB. A longer one is asked for again with fewer objects."""
    page_size: int = 500
    """Objects of one list page: decoding it holds the loop for about 5 ms."""
    watch_timeout: float = 300.0
    """A watch is asked to end after once to twice this, at random, so that watches move to new API servers."""
    watch_grace: float = 30.0
    """How much longer than it was asked for a silent watch may last before we cut it."""
    bookmark_silence: float = 180.0
    """A server that sends bookmarks sends one a minute: three missing mean a frozen connection."""
    initial_silence: float = 10.0
    """A streaming list that stands still so long is no streaming list: some servers ignore the parameter."""
    relist_after_empty: int = 3
    """Watches in a row that brought nothing at one resourceVersion: the server may have lost our place silently."""
    relist_after_errors: float = 60.0
    """Seconds of failing to resume a watch with server errors before the list is fetched afresh."""
    loop_budget: float = 0.001
    """Events are taken in turns of this long, so that a burst does not hold the loop."""
    pods_pause: float = 0.2
    """Changes of Pods are read this often, if they are few. Each would wake us, which costs ten times what it does, and nothing is due within seconds."""
    echo_pause: float = 0.02
    """The same of AutoWasms and EnvoyFilters: while we write, most of what comes is what we wrote. The first change is read at once."""
    resync: float = 600.0
    """Stores are delivered to handlers again this often: repairs what a lost update or a bug left behind."""
    events_queued: int = 1_000
    """Events that wait to be written; more are dropped: they tell a person, and nothing depends on them."""
    events_burst: int = 25
    events_refill: float = 300.0
    """For one object: so many events at once, then one in this many seconds (client-go's spam filter)."""
    events_rate: float = 10.0
    """Written in a second, after a first `events_burst`, while there is work: a start with thousands of objects must
    not cost the API server as much for telling as for doing. Without work they are written as they come."""
    events_flush: float = 5.0
    """Seconds that a stop waits for queued Events to be written, while sends finish: a full queue takes about this."""
    events_remembered: int = 4_096
    """Events and objects that de-duplication remembers."""


@dataclass(frozen=True, slots=True)
class DownloadLogLimits:
    """What is remembered of downloads. Some 150 bytes for an address."""

    digests: int = 1_000
    addresses: int = 50_000
    """Of one digest; the longest unseen goes first."""
