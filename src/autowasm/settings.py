"""Every setting of wasmer with its default and the reason for it.

`cli/flags.py` builds one frozen `Settings` from flags and environment.
Invariants: nothing below the composition root reads the environment; no default is written anywhere else.
Not the fixed bounds (see `limits.py`).
"""

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
    ServeLimits,
    StoreLimits,
)


@dataclass(frozen=True, slots=True)
class PollSettings:
    """How often sources with a `refreshInterval` are asked, all together (ADR 20). Seconds, counts."""

    look: float = 1.0
    """Between two looks at what is due: the shortest interval is 30 s."""
    rate: float = 5.0
    """Polls begun in a second, of all sources: 9 000 sources every half hour. More than that are late, in turns over
    namespaces."""
    burst: int = 10
    """Polls begun at once after quiet."""
    at_once: int = 16
    """Under way at a time: half of the fetches' places, so that polls never keep a new AutoWasm waiting."""
    per_namespace: int = 2
    """The same for one namespace, whose registry may hang."""
    jitter: float = 0.1
    """An interval is longer or shorter by up to this share: what began together does not stay together."""
    retry_first: float = 60.0
    """After a failure (or the interval, if that is less), doubling up to `max_retry` (or the interval, if that is more)."""
    max_retry: float = 300.0


@dataclass(frozen=True, slots=True)
class EnvoyFetch:
    """How a sidecar reaches us: goes into every EnvoyFilter, so a change here is a rollout."""

    service_name: str = "wasmer"
    service_namespace: str = "istio-system"
    service_port: int = 8081
    cluster_domain: str = "cluster.local"
    cluster_override: str | None = None
    authority_override: str | None = None
    timeout: float = 30.0
    """One attempt. At proxy start a silent server holds the whole proxy for (retries + 1) × this."""
    retries: int = 10
    """With back-off 1 s to 5 s: an outage of about 30 s costs no request. More blocks the listener's other changes."""

    @property
    def cluster(self) -> str:
        """The Envoy cluster that istiod makes for our Service."""
        return self.cluster_override or (
            f"outbound|{self.service_port}||"
            f"{self.service_name}.{self.service_namespace}.svc.{self.cluster_domain}"
        )

    @property
    def authority(self) -> str:
        """Host and port in the uri; Envoy sends it as Host and uses it for nothing else."""
        return self.authority_override or (
            f"{self.service_name}.{self.service_namespace}:{self.service_port}"
        )


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Which hosts and addresses fetches may reach, and how TLS is checked."""

    allow_cidr: tuple[str, ...] = ()
    deny_cidr: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    """`HOST[:PORT]` or `*.DOMAIN` that may be at loopback and private addresses. Registries that `plain_http`, `insecure` or
    `ca_files` names are so, too: the operator has named them (ADR 0031)."""
    inside: bool = False
    """Every host may be at loopback and private addresses: standalone mode, run by the person whose machine it is."""
    plain_loopback: bool = False
    """Registries on this machine speak plain HTTP unless something about TLS is set for them, as docker and crane have it."""
    plain_http: frozenset[str] = frozenset()
    """`HOST` or `HOST:PORT` of registries that speak plain HTTP."""
    insecure: frozenset[str] = frozenset()
    """`HOST` or `HOST:PORT` of registries whose certificate is not checked."""
    ca_file: Path | None = None
    """PEM file of further certificate authorities for registries and objects."""
    ca_files: tuple[tuple[str, Path], ...] = ()
    """The same for one `HOST` or `HOST:PORT` each."""
    proxy: str | None = field(default=None, repr=False)
    """`http://[USER:PASSWORD@]HOST:PORT` through which registries are asked; objects never are, see `net/proxy.py`."""
    no_proxy: tuple[str, ...] = ()
    """Registries that are asked directly: hosts, domains (with all below them), CIDRs of literal addresses, `*`."""
    host_rate: float = 50.0
    """Requests a second to one registry host, all together; 0: no limit. Docker Hub takes about this from one address."""
    host_burst: int = 100
    """Requests to one registry host that may be made at once before `host_rate` counts."""
    advice: Advice = WASMER
    """Whose flags and fields an error names."""


@dataclass(frozen=True, slots=True)
class Standalone:
    """Where standalone mode reads and writes."""

    config_dir: Path
    envoy_dir: Path
    listener_template: Path | None = None


@dataclass(frozen=True, slots=True)
class ResendSettings:
    """When a filter is given to its proxies once more (ADR 17). Seconds."""

    interval: float = 10.0
    """Between two looks at what proxies got."""
    given_up: float = 30.0
    """A proxy whose last answer was an error this long ago, and that has not come back, has used up its retries: they are at
    most 7.5 s apart (maxInterval 5 s, and jitter)."""
    outage: float = 10.0
    """Nobody served for so long: shorter gaps are bridged by Envoy's retries."""
    settle: float = 60.0
    """After an outage, time for proxies that still retry: healing them too would only drain their connections."""
    pause: float = 600.0
    """Of one object, between two healings."""
    pace: float = 2.0
    """Between healings of two objects: each drains connections in every sidecar of its filter."""


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """What it may cost to know who fetched a module. Seconds, counts."""

    interval: float = 10.0
    """Between two looks; as healing's, whose answers it uses."""
    grace: float = 60.0
    """A sidecar that has not asked this long after its Pod started, or the EnvoyFilter changed, is told of."""
    names: int = 10
    """Pods of one object that are named."""
    questions: int = 20
    """Modules asked about in one look; the others have their turn in the next."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Where the other replicas are, and what asking them may cost. Seconds, bytes, counts."""

    urls: tuple[str, ...] = ()
    """A fixed list of base URLs, instead of `host`."""
    host: str = ""
    """The headless Service's name; empty: no peers unless `urls` names some."""
    port: int = 8081
    lookup_interval: float = 5.0
    """A new replica is used by the others after this, and a Pod's address is reused by others much later."""
    lookup_pause: float = 1.0
    """Between two lookups, however often one is asked for."""
    lookup_timeout: float = 5.0
    most: int = 64
    """Peers of one list: more replicas than that serve nobody faster."""
    ask_timeout: float = 1.0
    """For "have you got it?": it is answered from memory, within a cluster."""
    asks: int = 3
    """Times that a peer is asked for a copy while it gives no answer: a busy one may have the only copy."""
    ask_again: float = 0.2
    idle: float = 3.0
    """A copy without a byte for so long has another peer tried."""
    copy_timeout: float = 20.0
    """One copy, whoever is tried: 32 MiB at 1.6 MiB/s."""
    minimum_rate: int = 64 * 1024
    rate_window: float = 2.0
    """A copy slower than `minimum_rate` bytes/s over so long is ended: sooner than from a registry, it is the next room."""
    hedge_after: float = 1.0
    """The next peer is tried beside one that has not given all of the module by then."""
    copies: int = 16
    """Digests copied at a time: what waits its turn is not asked for either, so that no question times out in a queue."""
    checks: int = 32
    """Peers asked at a time whether they have what is to be published: a thousand new modules are no flood."""
    seeks: int = 8
    """Digests that nobody told us of which peers are asked for at a time: digests are easy to invent."""
    missed_for: float = 2.0
    """A digest that no peer had is not sought again for so long."""
    misses: int = 10_000
    """Of these, remembered at most."""
    document_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Election:
    """How replicas agree on the one that writes. Seconds; client-go's defaults."""

    enabled: bool = True
    lease_name: str = "wasmer"
    """In the Service's namespace."""
    lease_duration: float = 15.0
    """Whole seconds; how long after its last renewal a silent leader is waited for."""
    renew_deadline: float = 10.0
    """How long a leader leads without a renewal; shorter, so that it stops before another begins."""
    retry_period: float = 2.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which API server, and what of it."""

    kubeconfig: Path | None = None
    """None: the service account of the Pod we run in."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all."""
    root_namespace: str = "istio-system"
    """The mesh's: selectors there reach Pods of every namespace."""
    service_account_pull_secrets: bool = False
    """Whether `imagePullSecrets` of the namespace's `default` ServiceAccount count where `spec.secret` is absent."""
    allow_mesh_wide: bool = False
    """Whether an empty selector in the root namespace, every workload of the mesh, is taken."""
    election: Election = field(default_factory=Election)


@dataclass(frozen=True, slots=True)
class Settings:
    """All that `wasmer` can be told."""

    cache_dir: Path
    listen: str = "[::]:8081"
    admin_listen: str = "[::]:8080"
    envoy: EnvoyFetch = field(default_factory=EnvoyFetch)
    outgoing: Outgoing = field(default_factory=Outgoing)
    allow_imports: frozenset[str] = frozenset()
    """Further host functions that a module may import, as `module.name`, for Envoys with extensions of their own."""
    oldest_envoy: EnvoyVersion = OLDEST_ENVOY
    """The oldest Envoy of the mesh: modules may import what it offers, and no more."""
    disk_budget: int = 4 * 1024 * MIB
    """Bytes of all stored blobs. What fetches stage meanwhile comes on top."""
    namespace_disk_budget: int = 1024 * MIB
    """Bytes of the blobs that one namespace may have published: four greedy ones, not one, can fill the cache."""
    blob_grace: float = 24 * 3600.0
    """Seconds that a blob stays after its last use: a proxy that missed the news for a night still finds it."""
    drain_delay: float = 5.0
    """Between becoming unready and closing: endpoints take seconds to reach every sidecar."""
    workers: int = 4
    startup_deadline: float = 90.0
    policy_file: Path | None = None
    """Which sources which namespaces may use; None: all."""
    log_level: str = "info"
    log_format: str = "json"
    limits: Limits = field(default_factory=Limits)
    serve: ServeLimits = field(default_factory=ServeLimits)
    store: StoreLimits = field(default_factory=StoreLimits)
    fetch: FetchLimits = field(default_factory=FetchLimits)
    kube: KubeLimits = field(default_factory=KubeLimits)
    peers: PeerSettings = field(default_factory=PeerSettings)
    download_log: DownloadLogLimits = field(default_factory=DownloadLogLimits)
    resend: ResendSettings = field(default_factory=ResendSettings)
    proof: ProofSettings = field(default_factory=ProofSettings)
    poll: PollSettings = field(default_factory=PollSettings)
    standalone: Standalone | None = None
    cluster: Cluster | None = None
