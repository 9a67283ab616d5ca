"""Facts: all that the checks look at, gathered once, read by nobody else.

Not the reading (`gather.py`) and not a model of Kubernetes: the fields that a check uses (`objects.py`). Invariant: what
could not be read is in `unread` with the reason, and its collection is empty, so that no check takes "not seen" for "not
there": it asks `seen` first.
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
    """`spec.secret` as it is stored now. `reason` and `problem` are empty if it holds a login for the image's registry."""

    reason: str = ""
    problem: str = ""


class SourceFact(Struct, frozen=True, kw_only=True):
    """What the source names now, asked from here. With a `problem` the rest is empty."""

    kind: str = ""
    """Class of the error: `SourceNotFound`, `SourceDenied`, …"""
    reason: str = ""
    problem: str = ""
    pinned: str = ""
    """`host/repository@sha256:…` or the URL."""
    login: str = ""
    """Whose login was shown, for people."""
    record: Record | None = None
    """If the module was fetched and judged as well."""


class ServerFact(Struct, frozen=True, kw_only=True):
    """How wasmer runs, from the arguments of its Pods. `known` False: the defaults, as they could not be read."""

    known: bool = False
    envoy: EnvoyFetch = EnvoyFetch()
    cluster: Cluster = Cluster()


class Facts(Struct, frozen=True, kw_only=True):
    """`live` is the EnvoyFilter of the AutoWasm's name; `wanted` the one that would be written, where that is known."""

    key: ObjectKey
    planned: bool = False
    """It is a document that is not applied (`wasmc plan`): what wasmer has still to do is not missing."""
    document: Mapping[str, Any]
    autowasm: AutoWasm | None = None
    spec_error: SpecError | None = None
    status: Status = Status()
    server: ServerFact = ServerFact()
    live: Mapping[str, Any] | None = None
    wanted: Mapping[str, Any] | None = None
    secret: SecretFact | None = None
    source: SourceFact | None = None
    mesh: MeshSettings = MeshSettings()
    namespaces: Mapping[str, Namespace] = {}
    pods: tuple[Pod, ...] = ()
    """Those that the selector matches, without those that have ended."""
    neighbours: tuple[Pod, ...] = ()
    """Others of the namespace, read only if the selector matches none."""
    services: tuple[Service, ...] = ()
    """Of the namespaces of `pods`."""
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
    """Why, by what: `pods`, `networkpolicies`, …"""
    cut: Mapping[str, int] = {}
    """Collections of which only so many objects were read."""

    @property
    def name(self) -> str:
        """The AutoWasm, as findings name it."""
        return f"AutoWasm {self.key}"

    @property
    def envoyfilter_name(self) -> str:
        """Its EnvoyFilter, as findings name it."""
        return f"EnvoyFilter {self.key}"

    @property
    def root_namespace(self) -> str:
        """The mesh's, as its own configuration says, else as wasmer was told."""
        return self.mesh.root_namespace or self.server.cluster.root_namespace

    @property
    def host(self) -> str:
        """Wasmer's name in the mesh."""
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

    def seen(self, *what: str) -> bool:
        """Whether all of these collections were read, and to their ends: only then is what is not in them not there."""
        return not any(each in self.unread or each in self.cut for each in what)
