"""Step Module: replicas of wasmer can serve it, and sidecars reach them through the Service."""

from collections.abc import Iterator
from typing import Final

from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step

_say: Final = Reporter(Step.MODULE)
_say_network: Final = Reporter(Step.NETWORK)
_HTTP: Final = ("http", "http2", "grpc", "grpc-web")


def replicas(facts: Facts) -> Iterator[Finding]:
    """A ready replica had, or tried once to fetch, each published module. This machine cannot check more."""
    if not facts.seen("wasmer pods", "wasmer service") or facts.wasmer_service is None:
        return
    name = f"Service {facts.wasmer_service.where}"
    there = len(facts.wasmer_pods)
    ready = sum(pod.is_ready for pod in facts.wasmer_pods)
    namespace = facts.wasmer_service.metadata.namespace
    if not ready:
        what = f"none of {there} Pods of wasmer is ready: no Pod that starts now gets its module"
        remedy = (
            f"kubectl get pods -n {namespace} -l app=wasmer; /readyz on the admin port says why"
        )
        yield _say(Level.ERROR, "NoReplica", name, what, remedy)
        return
    level = Level.OK if ready == there else Level.WARNING
    what = f"{ready} of {there} Pods of wasmer are ready"
    remedy = (
        "" if level is Level.OK else "/readyz on the admin port of the others says why they are not"
    )
    yield _say(level, "Replicas", name, what, remedy)
    if facts.record is not None:
        what = (
            "not checked: whether each replica holds this very module; one that lacks it fetches it from a peer or "
            "its origin as soon as a sidecar asks"
        )
        sha256, port = facts.record.sha256, facts.server.envoy.service_port
        remedy = f"to see: kubectl port-forward -n {namespace} POD {port}, then curl -I localhost:{port}/wasm/{sha256}"
        yield _say(Level.NOTE, "BlobHeld", name, what, remedy)


def service(facts: Facts) -> Iterator[Finding]:
    """The Service from which istiod makes Envoy's cluster."""
    if not facts.seen("wasmer service"):
        return
    envoy = facts.server.envoy
    name = f"Service {envoy.service_namespace}/{envoy.service_name}"
    if envoy.cluster_override:
        what = f"not used: sidecars fetch through Envoy's cluster {envoy.cluster_override}"
        yield _say(Level.NOTE, "ClusterOverride", name, what)
        return
    if facts.wasmer_service is None:
        what = "is not there, so no sidecar has a cluster for it: every fetch fails at once"
        remedy = "install wasmer, or say where it is with --service-name and --service-namespace"
        yield _say(Level.ERROR, "NoService", name, what, remedy)
        return
    port = next((one for one in facts.wasmer_service.ports if one.port == envoy.service_port), None)
    if port is None:
        what = f"has no port {envoy.service_port}, which every EnvoyFilter names"
        yield _say(Level.ERROR, "NoService", name, what, "give it the port", field="spec.ports")
    elif not (port.app_protocol or port.name).lower().startswith(_HTTP):
        what = f"port {port.port} is named {port.name or 'nothing'}: Istio takes it for plain TCP or guesses"
        remedy = "name it http-wasm"
        yield _say(Level.NOTE, "PortName", name, what, remedy, field="spec.ports")


def elsewhere(facts: Facts) -> Iterator[Finding]:
    """Endpoints other than wasmer's Pods: a merged mesh, a manual EndpointSlice, a ServiceEntry."""
    if not facts.seen("wasmer service", "wasmer endpoints", "wasmer pods"):
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
            what = f"sends sidecars to {', '.join(foreign[:3])}, which is no Pod of wasmer here"
            remedy = "remove it, or make sure that the same modules are served there"
            name = f"EndpointSlice {slice_.where}"
            yield _say(Level.WARNING, "ForeignEndpoint", name, what, remedy, field="endpoints")


def entries(facts: Facts) -> Iterator[Finding]:
    """ServiceEntries that claim wasmer's host."""
    for entry in facts.serviceentries:
        if facts.host in (entry.spec.hosts or ()):
            what = f"claims {facts.host}: sidecars may be sent to its endpoints, not to wasmer's"
            remedy = "remove the host from it, unless it is how wasmer is meant to be reached"
            name = f"ServiceEntry {entry.where}"
            yield _say(Level.WARNING, "ForeignEndpoint", name, what, remedy, field="spec.hosts")


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
        f"{sign} shows a mesh of several networks or clusters, where endpoints of the same Service are merged: "
        "sidecars may ask another cluster's wasmer, which knows other modules"
    )
    remedy = f"meshConfig.serviceSettings: settings.clusterLocal: true for host {facts.host}"
    name = f"ConfigMap {facts.root_namespace}/istio"
    yield _say_network(Level.WARNING, "MultiCluster", name, what, remedy, field="serviceSettings")


def _covers(pattern: str, host: str) -> bool:
    return pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))


CHECKS: Final[tuple[Check, ...]] = (service, replicas, elsewhere, entries, multi_cluster)
