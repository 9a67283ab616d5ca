"""Step Module: replicas of wasmer can serve it, and sidecars reach them through the Service."""

from collections.abc import Iterator
from typing import Final

from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step

_finding: Final = Reporter(Step.MODULE)
_network_finding: Final = Reporter(Step.NETWORK)
_HTTP: Final = ("http", "http2", "grpc", "grpc-web")


def replicas(facts: Facts) -> Iterator[Finding]:
    """A ready replica had each published module, or tried once to fetch it. This machine cannot check more."""
    if not facts.has_read("wasmer pods", "wasmer service") or facts.wasmer_service is None:
        return
    name = f"Service {facts.wasmer_service.where}"
    there = len(facts.wasmer_pods)
    ready = sum(pod.is_ready for pod in facts.wasmer_pods)
    namespace = facts.wasmer_service.metadata.namespace
    if not ready:
        what = f"none of wasmer's {there} Pods is ready: new Pods cannot fetch their module"
        remedy = f"kubectl get pods -n {namespace} -l app=wasmer; /readyz on the admin port reports the reason"
        yield _finding(Level.ERROR, "NoReplica", name, what, remedy)
        return
    level = Level.OK if ready == there else Level.WARNING
    what = f"{ready} of wasmer's {there} Pods are ready"
    remedy = (
        "" if level is Level.OK else "/readyz on the admin port of the others reports the reason"
    )
    yield _finding(level, "Replicas", name, what, remedy)
    if facts.record is not None:
        what = (
            "not checked: whether each replica has this module; a replica without it fetches it from a peer or "
            "from the source when a sidecar requests it"
        )
        sha256, port = facts.record.sha256, facts.server.envoy.service_port
        remedy = f"to check: kubectl port-forward -n {namespace} POD {port}, then curl -I localhost:{port}/wasm/{sha256}"
        yield _finding(Level.NOTE, "BlobHeld", name, what, remedy)


def service(facts: Facts) -> Iterator[Finding]:
    """The Service from which istiod makes Envoy's cluster."""
    if not facts.has_read("wasmer service"):
        return
    envoy = facts.server.envoy
    name = f"Service {envoy.service_namespace}/{envoy.service_name}"
    if envoy.cluster_override:
        what = f"not used: sidecars fetch through Envoy's cluster {envoy.cluster_override}"
        yield _finding(Level.NOTE, "ClusterOverride", name, what)
        return
    if facts.wasmer_service is None:
        what = (
            "does not exist, so no sidecar has an Envoy cluster for it: every fetch fails at once"
        )
        remedy = "install wasmer, or give its Service with --service-name and --service-namespace"
        yield _finding(Level.ERROR, "NoService", name, what, remedy)
        return
    port = next((one for one in facts.wasmer_service.ports if one.port == envoy.service_port), None)
    if port is None:
        what = f"has no port {envoy.service_port}, which every EnvoyFilter uses"
        yield _finding(Level.ERROR, "NoService", name, what, "add the port", field="spec.ports")
    elif not (port.app_protocol or port.name).lower().startswith(_HTTP):
        what = f"port {port.port} has {f'the name {port.name}' if port.name else 'no name'}: Istio treats it as TCP or detects the protocol"
        remedy = "name it http-wasm"
        yield _finding(Level.NOTE, "PortName", name, what, remedy, field="spec.ports")


def elsewhere(facts: Facts) -> Iterator[Finding]:
    """Endpoints other than wasmer's Pods: a merged mesh, a manual EndpointSlice, a ServiceEntry."""
    if not facts.has_read("wasmer service", "wasmer endpoints", "wasmer pods"):
        return
    own = frozenset(address for pod in facts.wasmer_pods for address in pod.addresses)
    for slice_ in facts.wasmer_endpoints:
        foreign = [
            address
            for endpoint in slice_.endpoints or ()
            for address in endpoint.addresses
            if address not in own
        ]
        if foreign and own:
            what = f"has endpoints that are not Pods of wasmer in this cluster: {', '.join(foreign[:3])}; sidecars may fetch from them"
            remedy = "remove these endpoints, or make sure that they serve the same modules"
            name = f"EndpointSlice {slice_.where}"
            yield _finding(Level.WARNING, "ForeignEndpoint", name, what, remedy, field="endpoints")


def entries(facts: Facts) -> Iterator[Finding]:
    """ServiceEntries that claim wasmer's host."""
    for entry in facts.serviceentries:
        if facts.host in (entry.spec.hosts or ()):
            what = f"claims {facts.host}: sidecars may connect to its endpoints instead of wasmer's"
            remedy = "remove the host from the ServiceEntry, unless sidecars are meant to reach wasmer through it"
            name = f"ServiceEntry {entry.where}"
            yield _finding(Level.WARNING, "ForeignEndpoint", name, what, remedy, field="spec.hosts")


def multi_cluster(facts: Facts) -> Iterator[Finding]:
    """Signs of several clusters: istiod merges their Services, and each cluster's wasmer serves other modules."""
    networks = sorted(
        name
        for name, namespace in facts.namespaces.items()
        if "topology.istio.io/network" in namespace.labels
    )
    labelled = sorted(
        label
        for one in (*facts.wasmer_pods, *((facts.wasmer_service,) if facts.wasmer_service else ()))
        for label in one.labels
        if label.startswith("topology.istio.io/")
    )
    if not networks and not labelled:
        return
    if any(_covers(host, facts.host) for host in facts.mesh.cluster_local):
        return
    sign = f"namespace {networks[0]}" if networks else f"wasmer's label {labelled[0]}"
    what = (
        f"{sign} indicates a mesh of several networks or clusters, where Istio merges the endpoints of the same Service: "
        "sidecars may fetch from another cluster's wasmer, which serves other modules"
    )
    remedy = f"set settings.clusterLocal: true for host {facts.host} in meshConfig.serviceSettings"
    name = f"ConfigMap {facts.root_namespace}/istio"
    yield _network_finding(
        Level.WARNING, "MultiCluster", name, what, remedy, field="serviceSettings"
    )


def _covers(pattern: str, host: str) -> bool:
    return pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))


CHECKS: Final[tuple[Check, ...]] = (service, replicas, elsewhere, entries, multi_cluster)
