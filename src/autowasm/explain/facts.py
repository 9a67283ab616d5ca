"""Facts: the input of the checks, read once by `gather.py`.

Invariant: a collection that could not be read is empty, and `unread` has the reason. So a check calls `has_read` before it draws
conclusions from a missing object.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from autowasm.api.record import Record, belongs_to
from autowasm.api.status import Status
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.errors import SpecError
from autowasm.explain.objects import (
    DestinationRule,
    EndpointSlice,
    EnvoyFilter,
    MeshSettings,
    Namespace,
    NetworkPolicy,
    Pod,
    Service,
    ServiceEntry,
    Sidecar,
    WasmPlugin,
)
from autowasm.kube.resources import ObjectKey
from autowasm.settings import Cluster, EnvoyFetch


class SecretFact(Struct, frozen=True, kw_only=True):
    """The stored Secret of `spec.secret`. `reason` and `problem` are empty if it holds a login for the image's registry."""

    reason: str = ""
    problem: str = ""


class SourceFact(Struct, frozen=True, kw_only=True):
    """The content to which the source resolves now, from this machine. With a `problem`, `pinned` and `record` are empty."""

    kind: str = ""
    """Class of the error: `SourceNotFound`, `SourceDenied`, …"""
    reason: str = ""
    problem: str = ""
    pinned: str = ""
    """`host/repository@sha256:…` or the URL."""
    login: str = ""
    """The origin of the login that was used, for messages."""
    record: Record | None = None
    """Set if the module was also fetched and checked."""


class StartFact(Struct, frozen=True, kw_only=True):
    """Whether the module starts with its configuration: `status`, `reason` and `message` as in the condition `Starts`.

    `command` shows more details on the user's machine.
    """

    status: str
    reason: str
    message: str
    command: str


class RunFact(Struct, frozen=True, kw_only=True):
    """The state of the module by a sidecar's statistics: `state` and `message` as in `status.pods.notRunning`, or `Running`."""

    pod: str
    """`namespace/name`."""
    state: str
    message: str


class ServerFact(Struct, frozen=True, kw_only=True):
    """Settings of wasmer, from the arguments of its Pods. `known` False: they could not be read, these are the defaults."""

    known: bool = False
    envoy: EnvoyFetch = EnvoyFetch()
    cluster: Cluster = Cluster()


class Facts(Struct, frozen=True, kw_only=True):
    """`live` is the EnvoyFilter with the AutoWasm's name; `desired` is the one that wasmer would write, None if not known."""

    key: ObjectKey
    planned: bool = False
    """The document is not applied (`wasmc plan`): a missing status or EnvoyFilter is not an error."""
    document: Mapping[str, Any]
    autowasm: AutoWasm | None = None
    unknown_rollout: bool = False
    """For a plan: a changed filter is rolled out in steps of the operator's policy, which was not given."""
    spec_error: SpecError | None = None
    status: Status = Status()
    server: ServerFact = ServerFact()
    live: Mapping[str, Any] | None = None
    desired: Mapping[str, Any] | None = None
    secret: SecretFact | None = None
    source: SourceFact | None = None
    start: StartFact | None = None
    """From this machine (`wasmc plan`), else from the status. None if it is not known."""
    mesh: MeshSettings = MeshSettings()
    namespaces: Mapping[str, Namespace] = {}
    pods: tuple[Pod, ...] = ()
    """Pods that the selector matches and that have not ended."""
    runs: tuple[RunFact, ...] = ()
    """The Pods whose statistics could be read, at most ten."""
    neighbours: tuple[Pod, ...] = ()
    """Other Pods of the namespace, read only if the selector matches none."""
    services: tuple[Service, ...] = ()
    """Services of the namespaces of `pods`."""
    envoyfilters: tuple[EnvoyFilter, ...] = ()
    wasmplugins: tuple[WasmPlugin, ...] = ()
    sidecars: tuple[Sidecar, ...] = ()
    networkpolicies: tuple[NetworkPolicy, ...] = ()
    destinationrules: tuple[DestinationRule, ...] = ()
    serviceentries: tuple[ServiceEntry, ...] = ()
    wasmer_service: Service | None = None
    wasmer_pods: tuple[Pod, ...] = ()
    wasmer_endpoints: tuple[EndpointSlice, ...] = ()
    unread: Mapping[str, str] = {}
    """Reasons by collection: `pods`, `networkpolicies`, …"""
    cut: Mapping[str, int] = {}
    """Numbers of objects read, by collection, for collections that were not read to their end."""

    @property
    def name(self) -> str:
        """The AutoWasm's name in findings."""
        return f"AutoWasm {self.key}"

    @property
    def envoyfilter_name(self) -> str:
        """The EnvoyFilter's name in findings."""
        return f"EnvoyFilter {self.key}"

    @property
    def root_namespace(self) -> str:
        """The mesh's root namespace, from MeshConfig, else from wasmer's flags."""
        return self.mesh.root_namespace or self.server.cluster.root_namespace

    @property
    def host(self) -> str:
        """The host of wasmer's Service in the mesh."""
        envoy = self.server.envoy
        return f"{envoy.service_name}.{envoy.service_namespace}.svc.{envoy.cluster_domain}"

    @property
    def injected(self) -> tuple[Pod, ...]:
        """Pods with a proxy."""
        return tuple(pod for pod in self.pods if pod.proxy is not None)

    @property
    def record(self) -> Record | None:
        """The record in the status, if it is one of the spec's source."""
        module = self.status.module
        if self.autowasm is None or not isinstance(module, Record):
            return None
        record = module.record()
        return record if belongs_to(record, str(self.autowasm.spec.filter.source)) else None

    def has_read(self, *what: str) -> bool:
        """Whether all of these collections were read to their end. Only then is a missing object absent in the cluster."""
        return not any(each in self.unread or each in self.cut for each in what)
