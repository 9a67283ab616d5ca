"""A real istiod beside the bare control plane of `kubernetes.py`, and a plain Envoy that it configures as a sidecar.

Not a mesh: no iptables, mutual TLS only if a test requests it (`agent.py`), and upstream's Envoy instead of Istio's build.
The configuration from an EnvoyFilter, and the time at which a proxy gets it, are as in a mesh. Each sidecar has its own
loopback address, as has the blob server.
"""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.parts import clients, goruntime, ports, provision, pypi, releases, wire
from tests.parts.envoy import Envoy
from tests.parts.kubernetes import Cluster
from tests.parts.process import PORT_ATTEMPTS, Process, ProcessError

Role = Literal["sidecar", "router"]

ROOT_NAMESPACE = "istio-system"
_BLOB_HOST = f"wasmer.{ROOT_NAMESPACE}.svc.cluster.local"
_READY_SECONDS = 60
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_XDS_CLUSTER = "xds-grpc"
# The cluster that provides the workload's certificates, as istiod's listeners name it.
_SDS_CLUSTER = "sds-grpc"

SDS_SOCKET = Path("var/run/secrets/workload-spiffe-uds/socket")
"""The socket on which an agent serves certificates, below the folder that it shares with its Envoy."""


@dataclass(frozen=True, slots=True)
class Istiod:
    """A running control plane of the mesh. Proxies connect to `grpc`, without TLS."""

    process: Process
    cluster: Cluster
    kubectl: clients.Client
    grpc: str
    http: str
    monitoring: str
    """The address of its metrics."""
    secure: str = ""
    """The address at which istiod signs certificates for agents, over TLS; empty if istiod is no certificate authority."""
    release: releases.Istio = releases.ISTIO

    async def apply(self, *documents: Mapping[str, Any]) -> None:
        """Server-side apply. Raises ApiError with the API server's message."""
        await self.cluster.apply(*documents)

    async def add_blob_service(self, *hosts: str, service_port: int = 8081) -> None:
        """Route `wasmer.istio-system.svc.cluster.local:SERVICE_PORT` to the servers at `hosts` (address:port, the same port for all).

        The sidecars' outbound listeners use SERVICE_PORT on the sidecars' own addresses.
        """
        await self.apply(_blob_service(hosts, service_port=service_port))

    async def add_workload(
        self, name: str, *, labels: Mapping[str, str], address: str, port: int, service: str
    ) -> None:
        """A workload in `default` with `labels`: its inbound listener is `address:port`, before `service` (address:port)."""
        await self.apply(
            *_workload(name, labels=labels, address=address, port=port, service=service)
        )

    async def add_gateway(
        self, name: str, *, labels: Mapping[str, str], address: str, port: int, service: str
    ) -> None:
        """A gateway in `default` for proxies with `labels`: it listens at `address:port`, before `service` (address:port)."""
        await self.apply(
            *_gateway(name, labels=labels, address=address, port=port, service=service)
        )

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of a metric that have these labels; 0 if there is none."""
        answer = await wire.get(f"http://{self.monitoring}/metrics")
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        total = 0.0
        for line in answer.body.decode().splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(one in series for one in wanted):
                total += float(value)
        return total

    async def config_dump(self, workload: str) -> Any:
        """The configuration that istiod would send to this workload's proxy."""
        url = f"http://{self.http}/debug/config_dump?proxyID={workload}.default"
        return yaml.safe_load((await wire.get(url)).body)


@asynccontextmanager
async def istiod(
    cluster: Cluster,
    directory: Path,
    *,
    authority: bool = False,
    flags: Mapping[str, str] | None = None,
    release: releases.Istio = releases.ISTIO,
) -> AsyncIterator[Istiod]:
    """Install Istio's CRDs and run istiod on `cluster`, with its log in `directory`. Raises ProcessError.

    As an `authority` it signs the workloads' certificates, as in a usual mesh. `flags`: feature flags (`PILOT_…`).
    """
    program = await asyncio.to_thread(provision.pilot_discovery, release)
    kubectl = await clients.kubectl(directory / "home", kubeconfig=cluster.kubeconfig)
    await apply_crds(cluster, release)
    await cluster.apply(*_mesh())
    if release.own_filters:
        await cluster.apply(_removed(release.own_filters))
    for attempts_left in reversed(range(PORT_ATTEMPTS)):
        found = [f"{ports.LOOPBACK}:{port}" for port in ports.free_ports(4)]
        grpc, http, monitoring, secure = found if authority else [*found[:3], ""]
        process = Process(
            "istiod",
            [
                *(program, "discovery", "--kubeconfig", cluster.kubeconfig),
                *("--grpcAddr", grpc, "--secureGRPCAddr", secure, "--httpAddr", http),
                *("--httpsAddr", "", "--monitoringAddr", monitoring, "--ctrlz_port", "0"),
            ],
            log=directory / "istiod.log",
            env=_environment(authority=authority) | dict(flags or {}),
            cwd=directory,
        )

        async def ready(host: str = http) -> bool:
            return (await wire.get(f"http://{host}/ready", timeout=2)).status == 200

        try:
            await process.start(ready=ready, timeout=_READY_SECONDS)
        except ProcessError as error:
            if error.port_taken and attempts_left:
                continue
            raise
        break
    async with process:
        yield Istiod(process, cluster, kubectl, grpc, http, monitoring, secure, release)


@asynccontextmanager
async def sidecar(
    mesh: Istiod,
    directory: Path,
    *,
    name: str,
    labels: Mapping[str, str],
    address: str,
    role: Role = "sidecar",
    version: str = pypi.ENVOY_VERSIONS[0],
    certificates: bool = False,
    timeout: float = 60,
) -> AsyncIterator[Envoy]:
    """A plain Envoy that gets its configuration from istiod as the workload `name` in `default` (add it first) at `address`.

    A `router` is a gateway in Istio's terms. With `certificates` it uses those of the agent that runs in
    `directory`.
    """
    program = await asyncio.to_thread(provision.envoy, version)
    bootstrap = directory / "envoy.yaml"
    address_file = directory / "admin-address"
    document = _bootstrap(mesh, name=name, labels=labels, address=address, role=role)
    if certificates:
        pipe = {"pipe": {"path": f"./{SDS_SOCKET}"}}
        document["static_resources"]["clusters"].append(_grpc_cluster(_SDS_CLUSTER, pipe))
    text = yaml.safe_dump(document)

    def prepare() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        address_file.unlink(missing_ok=True)
        bootstrap.write_text(text)

    await asyncio.to_thread(prepare)
    command: list[str | Path] = [program, "-c", bootstrap, "--admin-address-path", address_file]
    command += ["--concurrency", "2", "--log-level", "info", "--component-log-level", "wasm:debug"]
    # As the agent starts it, except for the drain time, which is 45 s there.
    command += ["--drain-time-s", "2", "--drain-strategy", "immediate", "--disable-hot-restart"]
    process = Process(f"{role} {name}", command, log=directory / "envoy.log", cwd=directory)
    proxy = Envoy(process, admin="")

    async def up() -> bool:
        proxy.admin = await asyncio.to_thread(lambda: address_file.read_text().strip())
        return bool(proxy.admin) and await proxy.ready()

    async with process:
        await process.start(ready=up, timeout=timeout)
        yield proxy


async def wait_for_blob_endpoints(proxy: Envoy, *hosts: str, timeout: float = 60) -> None:
    """Return once the sidecar knows these endpoints (address:port) of wasmer's Service, and no others.

    Requests for a module that is published earlier fail. Raises TimeoutError with the sidecar's endpoints.
    """
    found: set[str] = set()
    try:
        async with asyncio.timeout(timeout):
            while True:
                text = (await wire.get(f"http://{proxy.admin}/clusters")).body.decode()
                lines = (line.split("::") for line in text.splitlines() if _BLOB_HOST in line)
                found = {parts[1] for parts in lines if parts[1][:1].isdigit()}
                if found == set(hosts):
                    return
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise TimeoutError(f"wasmer's endpoints in the sidecar: {found}, not {hosts}") from error


async def apply_crds(cluster: Cluster, release: releases.Istio = releases.ISTIO) -> None:
    """Create Istio's CRDs, all that a controller of EnvoyFilters needs of Istio; existing ones stay. Raises ApiError."""
    file = await asyncio.to_thread(provision.istio_crds, release)
    text = await asyncio.to_thread(file.read_text)
    served = {name for _, name in await cluster.client.list_names(_DEFINITIONS)}
    definitions = await asyncio.to_thread(_load_all, text)
    await cluster.client.apply_crds(
        *(one for one in definitions if one["metadata"]["name"] not in served)
    )


@functools.cache
def _load_all(text: str) -> tuple[dict[str, Any], ...]:
    """Reading Istio's CRDs takes half a second of a processor, and each worker installs them several times."""
    return tuple(one for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one)


def _environment(*, authority: bool) -> dict[str, str]:
    return {
        **os.environ,
        **goruntime.SMALL,
        "POD_NAME": "istiod",
        "POD_NAMESPACE": ROOT_NAMESPACE,
        "CLUSTER_ID": "Kubernetes",
        "ENABLE_CA_SERVER": "true" if authority else "false",
        "PILOT_CERT_PROVIDER": "istiod" if authority else "none",
        # Filters of Istio's own build: upstream's Envoy refuses listeners that name them.
        "PILOT_ENABLE_ALPN_FILTER": "false",
        "PILOT_ENABLE_METADATA_EXCHANGE": "false",
        "PILOT_ENABLE_TELEMETRY": "false",
        "PILOT_ENABLE_ANALYSIS": "false",
        "VALIDATION_WEBHOOK_CONFIG_NAME": "",
        "INJECTION_WEBHOOK_CONFIG_NAME": "",
    }


def _mesh() -> list[dict[str, Any]]:
    settings = yaml.safe_dump({"enableAutoMtls": False})
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ROOT_NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": ROOT_NAMESPACE},
            "data": {"mesh": settings},
        },
        {
            "apiVersion": "security.istio.io/v1beta1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": ROOT_NAMESPACE},
            "spec": {"mtls": {"mode": "DISABLE"}},
        },
    ]


def _removed(filters: Sequence[str]) -> dict[str, Any]:
    """An EnvoyFilter that removes these HTTP filters from every listener."""
    chain = "envoy.filters.network.http_connection_manager"
    patches = [
        {
            "applyTo": "HTTP_FILTER",
            "match": {
                "listener": {
                    "filterChain": {"filter": {"name": chain, "subFilter": {"name": name}}}
                }
            },
            "patch": {"operation": "REMOVE"},
        }
        for name in filters
    ]
    return _networking(
        "EnvoyFilter", "upstream-envoy", {"configPatches": patches}, namespace=ROOT_NAMESPACE
    )


def _workload(
    name: str, *, labels: Mapping[str, str], address: str, port: int, service: str
) -> list[dict[str, Any]]:
    selector = {"workloadSelector": {"labels": dict(labels)}}
    http = {"number": port, "name": "http", "protocol": "HTTP"}
    return [
        _networking(
            "ServiceEntry",
            name,
            {
                **selector,
                "hosts": [f"{name}.default.svc.cluster.local"],
                "location": "MESH_INTERNAL",
                "resolution": "STATIC",
                "ports": [{**http, "targetPort": port}],
            },
        ),
        _networking("WorkloadEntry", name, {"address": address, "labels": dict(labels)}),
        _networking(
            "Sidecar",
            name,
            {
                "workloadSelector": {"labels": dict(labels)},
                "ingress": [
                    {
                        "port": http,
                        "bind": address,
                        "captureMode": "NONE",
                        "defaultEndpoint": service,
                    }
                ],
                "egress": [
                    {"bind": address, "captureMode": "NONE", "hosts": [f"{ROOT_NAMESPACE}/*"]}
                ],
            },
        ),
    ]


def _gateway(
    name: str, *, labels: Mapping[str, str], address: str, port: int, service: str
) -> list[dict[str, Any]]:
    host = f"{name}.example.com"
    behind, _, target = service.rpartition(":")
    http = {"number": port, "name": "http", "protocol": "HTTP"}
    return [
        _networking(
            "Gateway",
            name,
            {
                "selector": dict(labels),
                "servers": [{"port": http, "bind": address, "hosts": ["*"]}],
            },
        ),
        _networking(
            "ServiceEntry",
            name,
            {
                "hosts": [host],
                "resolution": "STATIC",
                "ports": [
                    {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": int(target)}
                ],
                "endpoints": [{"address": behind}],
            },
        ),
        _networking(
            "VirtualService",
            name,
            {
                "hosts": ["*"],
                "gateways": [name],
                "http": [{"route": [{"destination": {"host": host, "port": {"number": 80}}}]}],
            },
        ),
    ]


def _blob_service(hosts: Sequence[str], *, service_port: int) -> dict[str, Any]:
    addresses = [host.rpartition(":")[0] for host in hosts]
    port = hosts[0].rpartition(":")[2]
    spec = {
        "hosts": [_BLOB_HOST],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "ports": [
            {"number": service_port, "name": "http", "protocol": "HTTP", "targetPort": int(port)}
        ],
        "endpoints": [{"address": address} for address in addresses],
    }
    return _networking("ServiceEntry", "wasmer", spec, namespace=ROOT_NAMESPACE)


def _networking(
    kind: str, name: str, spec: dict[str, Any], *, namespace: str = "default"
) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1alpha3",  # every release serves it
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _bootstrap(
    mesh: Istiod, *, name: str, labels: Mapping[str, str], address: str, role: Role
) -> dict[str, Any]:
    grpc_address, _, grpc_port = mesh.grpc.rpartition(":")
    endpoint = {"socket_address": {"address": grpc_address, "port_value": int(grpc_port)}}
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return {
        "node": {
            "id": f"{role}~{address}~{name}.default~default.svc.cluster.local",
            "cluster": f"{name}.default",
            "metadata": {
                "LABELS": dict(labels),
                "NAMESPACE": "default",
                "CLUSTER_ID": "Kubernetes",
                "INTERCEPTION_MODE": "NONE",
                "ISTIO_VERSION": mesh.release.version,
                "INSTANCE_IPS": address,
            },
        },
        "admin": {"address": {"socket_address": {"address": ports.LOOPBACK, "port_value": 0}}},
        "dynamic_resources": {
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": _XDS_CLUSTER}}],
            },
        },
        "static_resources": {
            "clusters": [_grpc_cluster(_XDS_CLUSTER, endpoint)],
        },
    }


def _grpc_cluster(name: str, address: dict[str, Any]) -> dict[str, Any]:
    http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            http2: {
                "@type": f"type.googleapis.com/{http2}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
