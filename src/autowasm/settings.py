"""Every setting of wasmer with its default and the reason for it.

`cli/wasmerflags.py` builds one frozen `Settings` from flags and environment. The numbers of polls, resends, load and run reports,
and peers are here, too: `PollSettings`, `ProofSettings` and `RunSettings` have no flag, `ResendSettings` and `PeerSettings`
have one for some of their fields. All other bounds without a flag are in `limits.py`.
Invariants: nothing below the composition root reads the environment; no default is written anywhere else, except those in `cli/options.py`, which are
equal.
"""

import enum
from dataclasses import dataclass, field
from pathlib import Path

from autowasm.envoyversion import OLDEST_ENVOY, EnvoyVersion
from autowasm.errors import WASMER, Advice
from autowasm.limits import (
    MIB,
    DownloadLogLimits,
    FetchLimits,
    KubeLimits,
    Limits,
    PreflightLimits,
    ServeLimits,
    StatsLimits,
    StoreLimits,
)


@dataclass(frozen=True, slots=True)
class PollSettings:
    """Rate and concurrency of the polls of all sources with a `refreshInterval` (ADR 20). Seconds, counts."""

    check_interval: float = 1.0
    """Time between two checks for polls that are due. The shortest `refreshInterval` is 30 s."""
    rate: float = 5.0
    """Polls started per second, over all sources: enough for 9 000 sources every half hour. Polls above the rate are delayed,
    round-robin over namespaces."""
    burst: int = 10
    """Polls that may start at once after an idle period."""
    at_once: int = 16
    """Concurrent polls: half of the fetch limiter's places, so that polls never delay a new AutoWasm."""
    max_per_namespace: int = 2
    """Concurrent polls of one namespace. Its registry may hang."""
    jitter: float = 0.1
    """Each interval is longer or shorter by up to this fraction, so that polls that started together spread out."""
    retry_first: float = 60.0
    """Delay after the first failure, or the interval if that is shorter. Doubles up to `max_retry`, or the interval if longer."""
    max_retry: float = 300.0


class PreflightMode(enum.StrEnum):
    """The effect of a verdict on the start of a module, from the weakest to the strictest."""

    OFF = "off"
    """Modules are not started before they are published."""
    WARN = "warn"
    """The verdict is reported, and the module is published in any case."""
    ENFORCE = "enforce"
    """A module that refuses its configuration, or fails while it starts, is not published."""
    STRICT = "strict"
    """Only a module that is known to start is published."""

    @property
    def strength(self) -> int:
        """Orders the modes."""
        return [*PreflightMode].index(self)


@dataclass(frozen=True, slots=True)
class EnvoyFetch:
    """How sidecars reach wasmer. Part of every EnvoyFilter, so a change causes a rollout of all filters."""

    service_name: str = "wasmer"
    service_namespace: str = "istio-system"
    service_port: int = 8081
    cluster_domain: str = "cluster.local"
    cluster_override: str | None = None
    authority_override: str | None = None
    timeout: float = 30.0
    """Seconds for one attempt. A server that does not answer delays the start of a proxy by (retries + 1) × this."""
    retries: int = 10
    """With a back-off of 1 s to 5 s, an outage of about 30 s costs no request. More retries would block other updates of the
    listener."""

    @property
    def cluster(self) -> str:
        """The Envoy cluster that istiod generates for the Service of wasmer."""
        return self.cluster_override or (
            f"outbound|{self.service_port}||"
            f"{self.service_name}.{self.service_namespace}.svc.{self.cluster_domain}"
        )

    @property
    def authority(self) -> str:
        """Host and port in the URI. Envoy sends it as the Host header and does not use it otherwise."""
        return self.authority_override or (
            f"{self.service_name}.{self.service_namespace}:{self.service_port}"
        )


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Which hosts and addresses fetches may reach, and how TLS certificates are verified."""

    allow_cidr: tuple[str, ...] = ()
    deny_cidr: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    """`HOST[:PORT]` or `*.DOMAIN` that may resolve to loopback and private addresses. So may the registries in `plain_http`,
    `insecure` and `ca_files`, because the operator configured them explicitly (ADR 0031)."""
    inside: bool = False
    """Every host may resolve to loopback and private addresses. For standalone mode, which runs on the user's own machine."""
    plain_loopback: bool = False
    """Use plain HTTP for registries on loopback addresses, unless TLS is configured for them. As in docker and crane."""
    plain_http: frozenset[str] = frozenset()
    """`HOST` or `HOST:PORT` of registries that are reached over plain HTTP."""
    insecure: frozenset[str] = frozenset()
    """`HOST` or `HOST:PORT` of registries whose TLS certificate is not verified."""
    ca_file: Path | None = None
    """PEM file with additional certificate authorities, for registries and object servers."""
    ca_files: tuple[tuple[str, Path], ...] = ()
    """Pairs of `HOST` or `HOST:PORT` and a PEM file with additional certificate authorities for that registry."""
    proxy: str | None = field(default=None, repr=False)
    """`http://[USER:PASSWORD@]HOST:PORT`: the proxy for registries. Object servers are always reached directly (`net/proxy.py`)."""
    no_proxy: tuple[str, ...] = ()
    """Registries that are reached without the proxy: hosts, domains (with subdomains), CIDRs of literal addresses, `*`."""
    host_rate: float = 50.0
    """Requests per second to one registry host, over all namespaces; 0: no limit. Docker Hub accepts about this rate from one
    address."""
    host_burst: int = 100
    """Burst of requests to one registry host before `host_rate` applies."""
    advice: Advice = WASMER
    """The program whose flags and fields error messages name."""


@dataclass(frozen=True, slots=True)
class Standalone:
    """Where standalone mode reads and writes."""

    config_dir: Path
    envoy_dir: Path
    listener_template: Path | None = None


@dataclass(frozen=True, slots=True)
class ResendSettings:
    """When the module of a filter is resent to its proxies (ADR 17). Seconds."""

    interval: float = 10.0
    """Time between two checks of the answers that proxies got."""
    given_up: float = 30.0
    """A proxy that last got an error this long ago, and sent no request since, has used up its retries. They are at most 7.5 s
    apart (maxInterval 5 s, plus jitter)."""
    outage: float = 10.0
    """Shortest time without any serving replica that counts as an outage. Envoy's retries bridge shorter gaps."""
    settle: float = 60.0
    """Time after an outage in which proxies may still retry. A resend to them would only drain their connections."""
    pause: float = 600.0
    """Shortest time between two resends of one object."""
    pace: float = 2.0
    """Time between the resends of two objects. A resend drains connections in every sidecar of the filter."""


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """Bounds on the load report: which Pods fetched a module. Seconds, counts."""

    interval: float = 10.0
    """Time between two checks. The same as `ResendSettings.interval`, because both use the same answers."""
    grace: float = 60.0
    """A sidecar that sent no request this long after the start of its Pod, or the change of the EnvoyFilter, is reported."""
    max_named: int = 10
    """Pods that are named in the report of one object."""
    questions: int = 20
    """Peer queries about modules in one check. The remaining modules follow in the next checks."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """When sidecars are read to learn whether a module runs in them. Seconds, counts. `StatsLimits` has the rate."""

    interval: float = 1.0
    """Time between two checks. A reading right after the publication often shows the state before the change, and serves as a baseline."""
    pause: float = 1.0
    """Between the first two readings of a Pod; each pause is twice the previous one."""
    longest: float = 30.0
    """The longest pause. Istio's sidecars drain replaced filter chains for 45 s."""
    settle: float = 60.0
    """A Pod is not read any more when its module runs this long after the first reading."""
    window: float = 300.0
    """A Pod is not read any more this long after the first reading, whatever is known."""
    hold: float = 15.0
    """A report waits this long for Pods that are not known yet, because a status is written only once a minute."""
    batch: int = 100
    """Pods that are read in one check. If none of them answers, it takes 5 s."""
    max_named: int = 10
    """Pods that are named in the report of one object."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Addresses of the other replicas, and bounds on requests to them. Seconds, bytes, counts."""

    urls: tuple[str, ...] = ()
    """Base URLs of the peers, instead of `host`."""
    host: str = ""
    """DNS name of the headless Service. Empty: no peers, unless `urls` is set."""
    port: int = 8081
    lookup_interval: float = 5.0
    """Time until the other replicas know a new one. Kubernetes reuses a Pod's address only much later."""
    lookup_pause: float = 1.0
    """Shortest time between two lookups, however many are requested."""
    lookup_timeout: float = 5.0
    most: int = 64
    """Peers that are used. More replicas than that do not serve faster."""
    query_timeout: float = 1.0
    """Timeout of a peer query. Peers in the same cluster answer it from memory."""
    query_attempts: int = 3
    """Attempts to query a peer that does not answer. A busy peer may have the only copy."""
    query_pause: float = 0.2
    """Pause between two queries of a peer that does not have the module of a publication yet."""
    idle: float = 3.0
    """A copy that receives no bytes for this long is retried from another peer."""
    copy_timeout: float = 20.0
    """Deadline of one copy, over all peers: 32 MiB at 1.6 MiB/s."""
    minimum_rate: int = 64 * 1024
    rate_window: float = 2.0
    """A copy slower than `minimum_rate` bytes per second over this window is aborted. Shorter than for registries, because peers
    are in the same cluster."""
    hedge_after: float = 1.0
    """A copy that is not complete after this time is hedged: a second peer is tried in parallel."""
    copies: int = 16
    """Concurrent copies. A digest that waits for its turn is not queried either, so that no query times out in the queue."""
    checks: int = 32
    """Concurrent peer queries before publication, so that a thousand new modules do not flood the peers."""
    seeks: int = 8
    """Concurrent peer queries for digests that no AutoWasm names. Clients can invent digests."""
    missed_for: float = 2.0
    """Seconds for which a digest that no peer had is not queried again."""
    misses: int = 10_000
    """Digests that are remembered as missing."""
    document_bytes: int = 8 * MIB
    """One answer to a peer query. That of a full download log (50 000 addresses, `DownloadLogLimits`) has 3 MB with IPv4 addresses,
    4.5 MB with IPv6."""


@dataclass(frozen=True, slots=True)
class Election:
    """Leader election with a Lease. Only the leader writes. Seconds; shorter than client-go's (ADR 40)."""

    enabled: bool = True
    lease_name: str = "wasmer"
    """The Lease is in the namespace of the Service."""
    lease_duration: float = 6.0
    """Time after the last renewal before another replica takes over. Whole seconds."""
    renew_deadline: float = 4.0
    """Time after which a leader that cannot renew the Lease steps down. Shorter than `lease_duration`, so that two replicas never
    lead at once."""
    retry_period: float = 1.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The API server, and which of its objects wasmer handles."""

    kubeconfig: Path | None = None
    """None: the ServiceAccount of the Pod in which wasmer runs."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all namespaces."""
    root_namespace: str = "istio-system"
    """The root namespace of the mesh. Selectors there match Pods of all namespaces."""
    service_account_pull_secrets: bool = False
    """Whether `imagePullSecrets` of the namespace's `default` ServiceAccount are used if `spec.secret` is absent."""
    allow_mesh_wide: bool = False
    """Whether an AutoWasm in the root namespace may have an empty selector, which matches every workload of the mesh."""
    election: Election = field(default_factory=Election)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of `wasmer`."""

    cache_dir: Path
    listen: str = "[::]:8081"
    admin_listen: str = "[::]:8080"
    envoy: EnvoyFetch = field(default_factory=EnvoyFetch)
    outgoing: Outgoing = field(default_factory=Outgoing)
    allow_imports: frozenset[str] = frozenset()
    """Additional host functions that a module may import, as `module.name`, for Envoy builds with extensions."""
    oldest_envoy: EnvoyVersion = OLDEST_ENVOY
    """The oldest Envoy version in the mesh. Modules may import only the host functions that it has."""
    disk_budget: int = 4 * 1024 * MIB
    """Bytes of all stored blobs, and of compiled modules for the pre-flight. Data that running fetches stage comes on top."""
    namespace_disk_budget: int = 1024 * MIB
    """Bytes of blobs that one namespace may pin. With the defaults, it takes four such namespaces to fill the cache."""
    blob_grace: float = 24 * 3600.0
    """Seconds that a blob stays after its last use. A proxy that got no configuration overnight still finds it."""
    drain_delay: float = 5.0
    """Seconds between becoming unready and closing the ports. A change of endpoints takes seconds to reach every sidecar."""
    workers: int = 4
    startup_deadline: float = 90.0
    preflight: PreflightMode = PreflightMode.ENFORCE
    """Whether modules are started with their configuration before they are published (ADR 37)."""
    allow_preflight_override: bool = False
    """Whether the annotation of an AutoWasm may name a weaker mode than `preflight` or the policy file."""
    policy_file: Path | None = None
    """File with the sources that each namespace may use. None: every namespace may use every source."""
    log_level: str = "info"
    log_format: str = "auto"
    """`json`, `console`, or `auto`: console in standalone mode at a terminal, else JSON."""
    limits: Limits = field(default_factory=Limits)
    preflight_limits: PreflightLimits = field(default_factory=PreflightLimits)
    serve: ServeLimits = field(default_factory=ServeLimits)
    store: StoreLimits = field(default_factory=StoreLimits)
    fetch: FetchLimits = field(default_factory=FetchLimits)
    kube: KubeLimits = field(default_factory=KubeLimits)
    peers: PeerSettings = field(default_factory=PeerSettings)
    download_log: DownloadLogLimits = field(default_factory=DownloadLogLimits)
    resend: ResendSettings = field(default_factory=ResendSettings)
    proof: ProofSettings = field(default_factory=ProofSettings)
    run: RunSettings = field(default_factory=RunSettings)
    stats: StatsLimits = field(default_factory=StatsLimits)
    poll: PollSettings = field(default_factory=PollSettings)
    standalone: Standalone | None = None
    cluster: Cluster | None = None

    @property
    def runs_preflight(self) -> bool:
        """Whether a module may have to be started before it is published. The policy file may require it."""
        return self.preflight is not PreflightMode.OFF or self.policy_file is not None

    @property
    def code_budget(self) -> int:
        """The part of `disk_budget` for compiled modules. Code is about twice as large as its module, and can be made again."""
        return self.disk_budget // 8 if self.runs_preflight else 0

    @property
    def blob_budget(self) -> int:
        """The part of `disk_budget` for blobs."""
        return self.disk_budget - self.code_budget
