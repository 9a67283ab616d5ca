"""The flags of `wasmer controller` and `wasmer standalone` as tables, and the Settings that they make.

`settings.py` has the defaults, `values.py` reads the values, `options.py` has the options that wasmc shares. Invariants: every
field of Settings that a user may set is in a table; a mode accepts only the flags of its own groups.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from autowasm.cli.options import (
    ALLOW_IMPORT,
    CLUSTER_DOMAIN,
    ENVOY_VERSION,
    KUBECONFIG,
    SERVICE_NAME,
    SERVICE_NAMESPACE,
    SERVICE_PORT,
    Groups,
    Option,
    several,
    whole,
)
from autowasm.cli.values import (
    Values,
    boolean,
    ca_file,
    choice,
    cidr,
    duration,
    listen_address,
    peer_url,
    private_host,
    proxy_url,
    registry_host,
)
from autowasm.errors import UsageError
from autowasm.limits import FetchLimits
from autowasm.settings import (
    Cluster,
    Election,
    EnvoyFetch,
    Outgoing,
    PeerSettings,
    PreflightMode,
    ResendSettings,
    Settings,
    Standalone,
)
from autowasm.units import format_size, parse_size

FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""The kubelet mounts it with the ServiceAccount's token."""


def pod_namespace() -> str:
    """The namespace of the Pod that wasmer runs in. Empty outside a Pod, or if the ServiceAccount is not mounted.

    The namespace is in wasmer's own cluster; `--kubeconfig` may name another cluster.
    """
    try:
        return FILE.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


_CLUSTER_DEFAULT = Cluster()
_ELECTION = Election()

GROUPS: Groups = {
    "cluster": (
        KUBECONFIG,
        several(
            "--watch-namespace",
            "NAME",
            "namespace to watch; may be repeated or comma-separated (default: all)",
        ),
        Option(
            "--root-namespace",
            "NAME",
            "root namespace of the mesh; selectors of AutoWasms in it match Pods of all namespaces",
            default=_CLUSTER_DEFAULT.root_namespace,
        ),
        Option(
            "--service-account-pull-secrets",
            "",
            "without spec.secret, use the imagePullSecrets of the namespace's default ServiceAccount (requires the permission to get serviceaccounts)",
            boolean,
            default=False,
            switch=True,
        ),
        Option(
            "--allow-mesh-wide",
            "",
            "accept an empty selector in the root namespace; it selects every workload of the mesh",
            boolean,
            default=False,
            switch=True,
        ),
    ),
    "replicas": (
        Option(
            "--leader-elect",
            "",
            "elect one replica through a Lease; only this leader writes to the cluster, and all replicas serve modules (default)",
            boolean,
            default=True,
            switch=True,
        ),
        Option(
            "--lease-name",
            "NAME",
            "name of the Lease, in the Service's namespace",
            default=_ELECTION.lease_name,
        ),
        duration(
            "--lease-duration",
            "time after the last renewal before another replica takes over; whole seconds",
            _ELECTION.lease_duration,
        ),
        duration(
            "--renew-deadline",
            "time without a renewal after which the leader steps down; less than --lease-duration",
            _ELECTION.renew_deadline,
        ),
        duration("--retry-period", "time between two renewals", _ELECTION.retry_period),
        Option(
            "--peers-service",
            "NAME",
            "headless Service of all replicas, in the same namespace as --service-name; empty: no peers",
            default="wasmer-peers",
        ),
        duration(
            "--resend-after",
            "resend a module to sidecars that failed to fetch it and have not requested it again within this time",
            ResendSettings().settle,
        ),
    ),
}


def cluster(value: Values) -> Cluster:
    """The settings of the controller's flags. Raises UsageError."""
    return Cluster(
        kubeconfig=value("kubeconfig"),
        watch_namespaces=value("watch_namespace"),
        root_namespace=value("root_namespace"),
        allow_mesh_wide=value("allow_mesh_wide"),
        election=Election(
            enabled=value("leader_elect"),
            lease_name=value("lease_name"),
            lease_duration=value("lease_duration"),
            renew_deadline=value("renew_deadline"),
            retry_period=value("retry_period"),
        ),
        service_account_pull_secrets=value("service_account_pull_secrets"),
    )


def resend(value: Values) -> ResendSettings:
    """The settings of `--resend-after`. Raises UsageError."""
    after: float = value("resend_after")
    return ResendSettings(
        settle=after, given_up=after / 2, interval=min(ResendSettings().interval, after / 4)
    )


_DEFAULT = Settings(cache_dir=Path("/var/cache/wasmer"))
_ENVOY = _DEFAULT.envoy

_STANDALONE: Groups = {
    "standalone mode": (
        Option(
            "--config",
            "DIR",
            "directory of AutoWasm and Secret files (*.yaml, *.yml, *.json); parsed as by kubectl, watched for changes",
            Path,
        ),
        Option("--envoy-dir", "DIR", "output directory: envoyfilters/, status/ and lds.yaml", Path),
        Option(
            "--listener-template",
            "FILE",
            "LDS document (resources: one or more listeners) into which filters are inserted; the rest is not changed",
            Path,
        ),
    )
}
_COMMON: Groups = {
    "cache and ports": (
        Option("--cache-dir", "DIR", "directory of the verified modules", Path, _DEFAULT.cache_dir),
        Option(
            "--listen",
            "ADDRESS",
            "address from which Envoy fetches modules",
            listen_address,
            _DEFAULT.listen,
        ),
        Option(
            "--admin-listen",
            "ADDRESS",
            "address of metrics and health checks",
            listen_address,
            _DEFAULT.admin_listen,
        ),
        Option(
            "--disk-budget",
            "SIZE",
            "maximum size of the cache",
            parse_size,
            _DEFAULT.disk_budget,
            format_size(_DEFAULT.disk_budget),
        ),
        Option(
            "--namespace-disk-budget",
            "SIZE",
            "maximum total size of the published modules of one namespace",
            parse_size,
            _DEFAULT.namespace_disk_budget,
            format_size(_DEFAULT.namespace_disk_budget),
        ),
        duration(
            "--blob-grace",
            "time that a module stays in the cache after its last use",
            _DEFAULT.blob_grace,
        ),
        several(
            "--peer",
            "URL",
            "blob port of another replica (http://HOST:PORT) from which modules are copied; replaces the peers Service",
            peer_url,
        ),
        duration(
            "--drain-delay",
            "time between becoming unready and closing the ports",
            _DEFAULT.drain_delay,
        ),
        duration(
            "--startup-deadline",
            "time after which the replica becomes ready even if modules are missing",
            _DEFAULT.startup_deadline,
        ),
    ),
    "how sidecars reach wasmer (a change causes a rollout)": (
        SERVICE_NAME,
        SERVICE_NAMESPACE._replace(
            default_shown=f"the Pod's; {_ENVOY.service_namespace} outside of a Pod or with --kubeconfig"
        ),
        SERVICE_PORT,
        CLUSTER_DOMAIN,
        Option(
            "--envoy-cluster",
            "NAME",
            "Envoy cluster from which sidecars fetch, instead of the Service's",
        ),
        Option(
            "--envoy-authority",
            "HOST:PORT",
            "host in the URI of the fetch, instead of the Service's",
        ),
        duration(
            "--envoy-fetch-timeout", "timeout of each attempt of Envoy's fetch", _ENVOY.timeout
        ),
        Option(
            "--envoy-fetch-retries",
            "N",
            "maximum number of retries of Envoy's fetch",
            partial(whole, least=0),
            _ENVOY.retries,
        ),
    ),
    "outgoing fetches (repeatable flags also accept comma-separated values)": (
        several(
            "--allow-private-host",
            "HOST[:PORT]",
            "allow fetches from this host, or *.DOMAIN, at private and loopback addresses; not needed for registries "
            "that another flag names, nor in standalone mode",
            private_host,
        ),
        several(
            "--allow-cidr",
            "CIDR",
            "allow fetches from the private and loopback addresses in this CIDR, for every host",
            cidr,
        ),
        several(
            "--deny-cidr",
            "CIDR",
            "deny fetches from this CIDR (overrides --allow-cidr and --allow-private-host)",
            cidr,
        ),
        several("--plain-http-registry", "HOST[:PORT]", "registry without TLS", registry_host),
        several(
            "--insecure-registry",
            "HOST[:PORT]",
            "registry whose certificate is not verified",
            registry_host,
        ),
        several(
            "--registry-ca-file",
            "[HOST=]FILE",
            "additional certificate authorities (PEM), for all hosts or only for HOST",
            ca_file,
        ),
        Option(
            "--registry-proxy",
            "URL",
            "proxy for registries, http://[USER:PASSWORD@]HOST:PORT; the environment variable keeps the password out of process lists",
            proxy_url,
        ),
        several(
            "--no-proxy",
            "HOST",
            "registries that bypass the proxy: a host, a domain, or a CIDR for IP address literals",
        ),
        Option(
            "--registry-rate",
            "N",
            "requests per second to one registry host, 0 for no limit; the burst limit is twice this rate",
            partial(whole, least=0),
            int(_DEFAULT.outgoing.host_rate),
        ),
        Option(
            "--preflight",
            "MODE",
            "how to treat a module that does not start with its configuration; the start is tried in an isolated process before "
            "publication: off (not tried), warn (reported), enforce (not published), strict (published only if it is known to start)",
            choice(*(mode.value for mode in PreflightMode)),
            _DEFAULT.preflight.value,
        ),
        Option(
            "--allow-preflight-override",
            "",
            "allow the annotation wasm.tcm.io/preflight of an AutoWasm to set a weaker mode",
            boolean,
            default=False,
            switch=True,
        ),
        Option(
            "--policy-file",
            "FILE",
            "policy file (YAML): the registries and object hosts that each namespace may use; watched for changes",
            Path,
        ),
    ),
    "workers, module checks and logs": (
        Option("--workers", "N", "number of reconcile workers", whole, _DEFAULT.workers),
        Option(
            "--max-concurrent-fetches",
            "N",
            "maximum number of concurrent fetches",
            whole,
            _DEFAULT.fetch.total,
        ),
        ALLOW_IMPORT,
        ENVOY_VERSION,
        Option(
            "--log-level",
            "LEVEL",
            "debug, info, warning or error",
            choice("debug", "info", "warning", "error"),
            _DEFAULT.log_level,
        ),
        Option(
            "--log-format",
            "FORMAT",
            "json, console, or auto: console in standalone mode at a terminal, else json",
            choice("json", "console", "auto"),
            _DEFAULT.log_format,
        ),
    ),
}
MODES: Mapping[str, Groups] = {
    "standalone": {**_STANDALONE, **_COMMON},
    "controller": {**GROUPS, **_COMMON},
}


def declare(parser: argparse.ArgumentParser, mode: str) -> None:
    """Add the flags of a mode to its parser."""
    for title, options in MODES[mode].items():
        group = parser.add_argument_group(title)
        for option in options:
            option.declare(group)


def settings_from(
    arguments: argparse.Namespace,
    *,
    environment: Mapping[str, str] = os.environ,
    pod_namespace: Callable[[], str] = pod_namespace,
) -> Settings:
    """The settings from flags and environment. Raises UsageError.

    `pod_namespace` returns the namespace of wasmer and so, without a flag, of its Service; empty outside a Pod.
    """
    options = [option for group in MODES[arguments.mode].values() for option in group]
    value = Values(options, arguments, environment)
    namespace = _service_namespace(value, arguments.mode, pod_namespace)
    return Settings(
        cache_dir=value("cache_dir"),
        listen=value("listen"),
        admin_listen=value("admin_listen"),
        envoy=_envoy(value, namespace),
        outgoing=_outgoing(value, arguments.mode),
        allow_imports=frozenset(value("allow_import")),
        oldest_envoy=value("envoy_version"),
        disk_budget=value("disk_budget"),
        namespace_disk_budget=value("namespace_disk_budget"),
        blob_grace=value("blob_grace"),
        drain_delay=value("drain_delay"),
        workers=value("workers"),
        startup_deadline=value("startup_deadline"),
        preflight=PreflightMode(value("preflight")),
        allow_preflight_override=value("allow_preflight_override"),
        policy_file=value("policy_file"),
        log_level=value("log_level"),
        log_format=value("log_format"),
        fetch=FetchLimits(total=value("max_concurrent_fetches")),
        peers=_peers(value, arguments.mode, namespace),
        resend=(resend(value) if arguments.mode == "controller" else ResendSettings()),
        standalone=_standalone(value) if arguments.mode == "standalone" else None,
        cluster=cluster(value) if arguments.mode == "controller" else None,
    )


def _service_namespace(value: Values, mode: str, pod_namespace: Callable[[], str]) -> str:
    given: str | None = value("service_namespace")
    if given is not None:
        return given
    in_cluster = mode == "controller" and value("kubeconfig") is None
    return (pod_namespace() if in_cluster else "") or _ENVOY.service_namespace


def _peers(value: Values, mode: str, namespace: str) -> PeerSettings:
    service = value("peers_service") if mode == "controller" else ""
    domain = f"{namespace}.svc.{value('cluster_domain')}"
    return PeerSettings(
        urls=value("peer"),
        host=f"{service}.{domain}" if service else "",
        port=int(value("listen").rpartition(":")[2]) or value("service_port"),
    )


def _standalone(value: Values) -> Standalone:
    return Standalone(
        config_dir=value.required("config"),
        envoy_dir=value.required("envoy_dir"),
        listener_template=value("listener_template"),
    )


def _envoy(value: Values, namespace: str) -> EnvoyFetch:
    return EnvoyFetch(
        service_name=value("service_name"),
        service_namespace=namespace,
        service_port=value("service_port"),
        cluster_domain=value("cluster_domain"),
        cluster_override=value("envoy_cluster"),
        authority_override=value("envoy_authority"),
        timeout=value("envoy_fetch_timeout"),
        retries=value("envoy_fetch_retries"),
    )


def _outgoing(value: Values, mode: str) -> Outgoing:
    ca_files = value("registry_ca_file")
    everywhere = [path for host, path in ca_files if not host]
    if len(everywhere) > 1:
        raise UsageError(
            "--registry-ca-file: only one without HOST= is allowed; combine the certificates in one file"
        )
    rate = value("registry_rate")
    return Outgoing(
        allow_cidr=value("allow_cidr"),
        deny_cidr=value("deny_cidr"),
        private_hosts=value("allow_private_host"),
        inside=mode == "standalone",
        plain_loopback=mode == "standalone",
        plain_http=frozenset(value("plain_http_registry")),
        insecure=frozenset(value("insecure_registry")),
        ca_file=everywhere[0] if everywhere else None,
        ca_files=tuple((host, path) for host, path in ca_files if host),
        proxy=value("registry_proxy"),
        no_proxy=value("no_proxy"),
        host_rate=float(rate),
        host_burst=2 * rate,
    )
