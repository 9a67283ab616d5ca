"""The parts of Istio's objects that checks look at. As `objects.py`."""

from typing import Any

from msgspec import Struct, field

from autowasm.explain.objects import Labels, LabelSelector, Named


class WorkloadSelector(Struct, frozen=True):
    """Istio's, of EnvoyFilter and Sidecar."""

    labels: Labels | None = None


class EnvoyFilterSpec(Struct, frozen=True, rename="camel"):
    """`config_patches` as they are: their form is Envoy's."""

    config_patches: list[dict[str, Any]] | None = None
    workload_selector: WorkloadSelector | None = None
    priority: int = 0


class EnvoyFilter(Named, frozen=True):
    """networking.istio.io/v1alpha3."""

    spec: EnvoyFilterSpec = field(default_factory=EnvoyFilterSpec)


class _PluginSpec(Struct, frozen=True):
    selector: LabelSelector | None = None
    phase: str = ""
    priority: int | None = None


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
        """Hosts whose endpoints of other clusters are left out."""
        local = [
            one
            for one in self.service_settings or ()
            if (one.settings or {}).get("clusterLocal") is True
        ]
        return tuple(host for one in local for host in one.hosts or ())
