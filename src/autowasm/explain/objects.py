"""The fields of Kubernetes and Istio objects that the checks use, decoded directly from the API server's pages.

Unknown fields are ignored. Invariant: every field has a default, so an object of an API version that lacks some fields is
decoded, not refused.
"""

import re
from typing import Any, Final

from msgspec import Struct, field

PROXY: Final = "istio-proxy"
_INJECTED_REVISION: Final = re.compile(r'"revision"\s*:\s*"([^"]*)"')
_VERSION: Final = re.compile(r":v?(\d+)\.(\d+)(?:[.-]|\Z)")
_ENDED: Final = frozenset({"Succeeded", "Failed"})

Labels = dict[str, str]


class Meta(Struct, frozen=True, rename="camel"):
    """ObjectMeta."""

    name: str = ""
    namespace: str = ""
    labels: Labels | None = None
    annotations: Labels | None = None
    creation_timestamp: str = ""


class Requirement(Struct, frozen=True):
    """One entry of matchExpressions."""

    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class LabelSelector(Struct, frozen=True, rename="camel"):
    """metav1.LabelSelector."""

    match_labels: Labels | None = None
    match_expressions: list[Requirement] | None = None

    def matches(self, labels: Labels) -> bool:
        """By the rules of Kubernetes: an empty selector matches everything."""
        if any(labels.get(key) != value for key, value in (self.match_labels or {}).items()):
            return False
        return all(_fulfils(labels, one) for one in self.match_expressions or ())


def _fulfils(labels: Labels, wanted: Requirement) -> bool:
    value, values = labels.get(wanted.key), wanted.values or []
    if wanted.operator == "In":
        return value in values
    if wanted.operator == "NotIn":
        return value not in values
    return (value is not None) == (wanted.operator == "Exists")


class Named(Struct, frozen=True):
    """Base of all objects."""

    metadata: Meta = field(default_factory=Meta)

    @property
    def where(self) -> str:
        """`namespace/name`."""
        namespace = self.metadata.namespace
        return f"{namespace}/{self.metadata.name}" if namespace else self.metadata.name

    @property
    def labels(self) -> Labels:
        """Never None."""
        return self.metadata.labels or {}

    @property
    def annotations(self) -> Labels:
        """Never None."""
        return self.metadata.annotations or {}


class ContainerPort(Struct, frozen=True, rename="camel"):
    """Of a container."""

    container_port: int = 0
    name: str = ""


class EnvVar(Struct, frozen=True):
    """A variable; `value` is empty if it comes from `valueFrom`."""

    name: str = ""
    value: str = ""


class Container(Struct, frozen=True):
    """Of a Pod."""

    name: str = ""
    image: str = ""
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[EnvVar] | None = None
    ports: list[ContainerPort] | None = None


class _PodSpec(Struct, frozen=True, rename="camel"):
    containers: list[Container] = []
    init_containers: list[Container] = []
    host_network: bool = False


class _PodCondition(Struct, frozen=True):
    type: str = ""
    status: str = ""


class _PodIp(Struct, frozen=True):
    ip: str = ""


class _PodStatus(Struct, frozen=True, rename="camel"):
    phase: str = ""
    conditions: list[_PodCondition] | None = None
    pod_ips: list[_PodIp] | None = field(default=None, name="podIPs")


class Pod(Named, frozen=True):
    """A Pod."""

    spec: _PodSpec = field(default_factory=_PodSpec)
    status: _PodStatus = field(default_factory=_PodStatus)

    @property
    def proxy(self) -> Container | None:
        """The sidecar, also a native one, or a gateway's proxy."""
        every = (*self.spec.containers, *self.spec.init_containers)
        return next((one for one in every if one.name == PROXY), None)

    @property
    def is_gateway(self) -> bool:
        """Whether its proxy is a router, not a sidecar."""
        return self.proxy is not None and "router" in (self.proxy.args or ())

    @property
    def has_tunnel(self) -> bool:
        """Whether ambient workloads reach the Pod through a tunnel (HBONE); Istio's injection sets the label."""
        return self.labels.get("networking.istio.io/tunnel") == "http"

    @property
    def version(self) -> tuple[int, int] | None:
        """Istio's version from the tag of the proxy's image; None if the tag has no version."""
        if self.proxy is None:
            return None
        found = _VERSION.search(self.proxy.image)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def revision(self) -> str:
        """The Istio revision that injected the proxy; empty if not known."""
        found = _INJECTED_REVISION.search(self.annotations.get("sidecar.istio.io/status", ""))
        return found[1] if found else self.labels.get("istio.io/rev", "")

    @property
    def is_ready(self) -> bool:
        """Whether the condition `Ready` is true."""
        return any(
            one.type == "Ready" and one.status == "True" for one in self.status.conditions or ()
        )

    @property
    def has_ended(self) -> bool:
        """Whether all containers have ended, so no proxy runs."""
        return self.status.phase in _ENDED

    @property
    def ports(self) -> tuple[ContainerPort, ...]:
        """Ports of all containers except the proxy."""
        every = (*self.spec.containers, *self.spec.init_containers)
        return tuple(port for one in every if one.name != PROXY for port in one.ports or ())

    @property
    def addresses(self) -> frozenset[str]:
        """Pod IPs."""
        return frozenset(each.ip for each in self.status.pod_ips or ())


class Namespace(Named, frozen=True):
    """A Namespace."""


class ServicePort(Struct, frozen=True, rename="camel"):
    """Of a Service."""

    port: int = 0
    name: str = ""
    app_protocol: str = ""
    target_port: int | str | None = None


class _ServiceSpec(Struct, frozen=True):
    selector: Labels | None = None
    ports: list[ServicePort] | None = None


class Service(Named, frozen=True):
    """A Service."""

    spec: _ServiceSpec = field(default_factory=_ServiceSpec)

    @property
    def ports(self) -> list[ServicePort]:
        """Never None."""
        return self.spec.ports or []

    def selects(self, pod: Pod) -> bool:
        """Whether the Service selects the Pod."""
        wanted = self.spec.selector
        if not wanted or pod.metadata.namespace != self.metadata.namespace:
            return False
        return wanted.items() <= pod.labels.items()


class Endpoint(Struct, frozen=True):
    """Of an EndpointSlice."""

    addresses: list[str] = []


class EndpointSlice(Named, frozen=True):
    """discovery.k8s.io/v1."""

    endpoints: list[Endpoint] | None = None


class Peer(Struct, frozen=True, rename="camel"):
    """Of a NetworkPolicy's rule."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: dict[str, Any] | None = None


class PolicyPort(Struct, frozen=True, rename="camel"):
    """Of a NetworkPolicy's rule."""

    protocol: str = "TCP"
    port: int | str | None = None
    end_port: int | None = None


class PolicyRule(Struct, frozen=True):
    """`to` of egress, `from` of ingress; None or empty: every peer, every port."""

    to: list[Peer] | None = None
    from_: list[Peer] | None = field(default=None, name="from")
    ports: list[PolicyPort] | None = None


class _PolicySpec(Struct, frozen=True, rename="camel"):
    pod_selector: LabelSelector = field(default_factory=LabelSelector)
    policy_types: list[str] | None = None
    ingress: list[PolicyRule] | None = None
    egress: list[PolicyRule] | None = None


class NetworkPolicy(Named, frozen=True):
    """networking.k8s.io/v1."""

    spec: _PolicySpec = field(default_factory=_PolicySpec)


class WorkloadSelector(Struct, frozen=True):
    """Istio's selector, of EnvoyFilter and Sidecar."""

    labels: Labels | None = None


class EnvoyFilterSpec(Struct, frozen=True, rename="camel"):
    """`config_patches` are not decoded further: their form is Envoy's."""

    config_patches: list[dict[str, Any]] | None = None
    workload_selector: WorkloadSelector | None = None
    priority: int = 0


class EnvoyFilter(Named, frozen=True):
    """networking.istio.io/v1alpha3."""

    spec: EnvoyFilterSpec = field(default_factory=EnvoyFilterSpec)


class _PluginSpec(Struct, frozen=True):
    selector: LabelSelector | None = None
    phase: str = ""


class WasmPlugin(Named, frozen=True):
    """extensions.istio.io/v1alpha1."""

    spec: _PluginSpec = field(default_factory=_PluginSpec)


class SidecarPort(Struct, frozen=True):
    """Of an egress listener."""

    number: int = 0


class Egress(Struct, frozen=True):
    """`hosts` as `namespace/name`."""

    hosts: list[str] | None = None
    port: SidecarPort | None = None


class _SidecarSpec(Struct, frozen=True, rename="camel"):
    workload_selector: WorkloadSelector | None = None
    egress: list[Egress] | None = None


class Sidecar(Named, frozen=True):
    """networking.istio.io/v1."""

    spec: _SidecarSpec = field(default_factory=_SidecarSpec)


class _Tls(Struct, frozen=True):
    mode: str = ""


class _Http(Struct, frozen=True, rename="camel"):
    h2_upgrade_policy: str = field(default="", name="h2UpgradePolicy")


class _Pool(Struct, frozen=True):
    http: _Http | None = None


class PortPolicy(Struct, frozen=True, rename="camel"):
    """Of a DestinationRule, for one port."""

    port: SidecarPort | None = None
    tls: _Tls | None = None
    connection_pool: _Pool | None = None


class TrafficPolicy(Struct, frozen=True, rename="camel"):
    """Of a DestinationRule."""

    tls: _Tls | None = None
    connection_pool: _Pool | None = None
    port_level_settings: list[PortPolicy] | None = None


class _RuleSpec(Struct, frozen=True, rename="camel"):
    host: str = ""
    traffic_policy: TrafficPolicy | None = None
    export_to: list[str] | None = None
    workload_selector: LabelSelector | None = None


class DestinationRule(Named, frozen=True):
    """networking.istio.io/v1."""

    spec: _RuleSpec = field(default_factory=_RuleSpec)


class _EntrySpec(Struct, frozen=True):
    hosts: list[str] | None = None


class ServiceEntry(Named, frozen=True):
    """networking.istio.io/v1."""

    spec: _EntrySpec = field(default_factory=_EntrySpec)


class _ServiceSettings(Struct, frozen=True, rename="camel"):
    settings: dict[str, Any] | None = None
    hosts: list[str] | None = None


class MeshSettings(Struct, frozen=True, rename="camel"):
    """MeshConfig, from the ConfigMap `istio`."""

    root_namespace: str = ""
    discovery_selectors: list[LabelSelector] | None = None
    default_service_export_to: list[str] | None = None
    service_settings: list[_ServiceSettings] | None = None

    @property
    def cluster_local(self) -> tuple[str, ...]:
        """Hosts whose endpoints in other clusters istiod excludes."""
        local = [
            one
            for one in self.service_settings or ()
            if (one.settings or {}).get("clusterLocal") is True
        ]
        return tuple(host for one in local for host in one.hosts or ())
