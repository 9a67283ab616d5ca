"""Step Network: sidecars have a cluster for wasmer and use it correctly, and NetworkPolicies allow the traffic.

Without the cluster Envoy's fetch fails at once and reports nothing. CNI-specific policy kinds are not read. Invariant: a rule
with an address block counts as possibly allowing the traffic, because CNIs match it differently (before or after NAT).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Reporter, Step
from autowasm.explain.objects import (
    DestinationRule,
    Egress,
    NetworkPolicy,
    Peer,
    Pod,
    PolicyPort,
    PolicyRule,
    Sidecar,
    TrafficPolicy,
)

_finding: Final = Reporter(Step.NETWORK)
_EXPORT: Final = "networking.istio.io/exportTo"
_TLS: Final = frozenset({"SIMPLE", "MUTUAL"})


def sidecars(facts: Facts) -> Iterator[Finding]:
    """`Sidecar` resources whose egress does not include wasmer."""
    hiding: dict[str, list[Pod]] = {}
    for pod in facts.injected:
        if pod.is_gateway:
            continue
        sidecar = _sidecar_of(pod, facts)
        if sidecar is not None and sidecar.spec.egress and not _imports(sidecar, pod, facts):
            hiding.setdefault(sidecar.where, []).append(pod)
    for name, pods in hiding.items():
        first = pods[0].where
        what = f"does not include wasmer in the egress of {len(pods)} Pods ({first}{', …' if len(pods) > 1 else ''}): they cannot fetch the module"
        namespace = facts.server.envoy.service_namespace
        remedy = f"add {namespace}/{facts.host} to the hosts of an egress entry"
        yield _finding(
            Level.ERROR,
            "SidecarEgress",
            f"Sidecar {name}",
            what,
            remedy,
            field="spec.egress[].hosts",
        )


def _sidecar_of(pod: Pod, facts: Facts) -> Sidecar | None:
    """The Sidecar that applies: with a matching selector, else the namespace's, else the root namespace's."""
    own = [one for one in facts.sidecars if one.metadata.namespace == pod.metadata.namespace]
    for sidecar in own:
        labels = _labels(sidecar)
        if labels and labels.items() <= pod.labels.items():
            return sidecar
    root = [one for one in facts.sidecars if one.metadata.namespace == facts.root_namespace]
    return next((one for one in (*own, *root) if not _labels(one)), None)


def _labels(sidecar: Sidecar) -> Mapping[str, str]:
    selector = sidecar.spec.workload_selector
    return (selector.labels if selector else None) or {}


def _imports(sidecar: Sidecar, pod: Pod, facts: Facts) -> bool:
    return any(_egress_has(egress, pod, facts) for egress in sidecar.spec.egress or ())


def _egress_has(egress: Egress, pod: Pod, facts: Facts) -> bool:
    if egress.port is not None and egress.port.number not in {0, facts.server.envoy.service_port}:
        return False
    for host in egress.hosts or ():
        namespace, _, name = host.partition("/")
        wanted = pod.metadata.namespace if namespace == "." else namespace
        if wanted in {"*", facts.server.envoy.service_namespace} and covers(name, facts.host):
            return True
    return False


def covers(pattern: str, host: str) -> bool:
    """Whether a host of Istio's configuration, possibly with a wildcard prefix, matches `host`."""
    return pattern in {"*", host} or (pattern.startswith("*") and host.endswith(pattern[1:]))


def exported(facts: Facts) -> Iterator[Finding]:
    """The Service may be exported only to some namespaces."""
    service = facts.wasmer_service
    if service is None:
        return
    name = f"Service {service.where}"
    export_to = service.annotations.get(_EXPORT)
    places = (
        export_to.split(",")
        if export_to is not None
        else facts.mesh.default_service_export_to or ["*"]
    )
    own = service.metadata.namespace
    hidden = sorted(
        {pod.metadata.namespace for pod in facts.injected}
        - {namespace for place in places for namespace in (_expand(place.strip(), own),)}
    )
    if hidden and "*" not in {place.strip() for place in places}:
        what = f"is exported only to {', '.join(places)}: sidecars of {', '.join(hidden[:3])} have no cluster for it"
        remedy = (
            f'kubectl annotate service -n {own} {service.metadata.name} --overwrite {_EXPORT}="*"'
        )
        where = f"metadata.annotations[{_EXPORT}]" if export_to is not None else ""
        yield _finding(Level.ERROR, "NotExported", name, what, remedy, field=where)


def _expand(place: str, own: str) -> str:
    return own if place == "." else place


def destination_rules(facts: Facts) -> Iterator[Finding]:
    """Rules for wasmer's host that make sidecars use TLS or HTTP/2, which wasmer does not serve."""
    meshed = any(pod.proxy is not None for pod in facts.wasmer_pods)
    clients = {pod.metadata.namespace for pod in facts.injected}
    for rule in facts.destinationrules:
        if not _concerns(rule, facts, clients):
            continue
        name = f"DestinationRule {rule.where}"
        mode, http2, field = _settings(rule.spec.traffic_policy, facts.server.envoy.service_port)
        if mode in _TLS:
            what = f"makes sidecars use TLS ({mode}) for wasmer, which serves plain HTTP: every fetch fails"
            remedy = "set tls.mode: DISABLE for this host"
            yield _finding(
                Level.ERROR, "DestinationRuleTls", name, what, remedy, field=f"{field}.tls.mode"
            )
        elif mode == "ISTIO_MUTUAL" and facts.wasmer_pods and not meshed:
            what = (
                "makes sidecars use mTLS for wasmer, whose Pods have no sidecar: every fetch fails"
            )
            remedy = "set tls.mode: DISABLE for this host, or inject sidecars into wasmer's Pods"
            yield _finding(
                Level.ERROR, "DestinationRuleTls", name, what, remedy, field=f"{field}.tls.mode"
            )
        if http2:
            what = "makes sidecars use HTTP/2 for wasmer, which serves only HTTP/1.1"
            remedy = "set h2UpgradePolicy: DO_NOT_UPGRADE for this host"
            where = f"{field}.connectionPool.http.h2UpgradePolicy"
            yield _finding(Level.ERROR, "DestinationRuleH2", name, what, remedy, field=where)
        if mode not in _TLS and not http2:
            what = f"applies to wasmer's host (tls.mode {mode or 'not set'})"
            yield _finding(Level.NOTE, "DestinationRule", name, what, field="spec.host")


def _concerns(rule: DestinationRule, facts: Facts, clients: set[str]) -> bool:
    """Whether the rule is for wasmer's host and applies to one of the Pods."""
    envoy, namespace = facts.server.envoy, rule.metadata.namespace
    host = rule.spec.host
    if "." not in host and not host.startswith("*"):
        host = f"{host}.{namespace}.svc.{envoy.cluster_domain}"
    if not covers(host, facts.host) and host != f"{envoy.service_name}.{envoy.service_namespace}":
        return False
    if rule.spec.workload_selector is not None and not any(
        rule.spec.workload_selector.matches(pod.labels) for pod in facts.injected
    ):
        return False
    places = {_expand(place, namespace) for place in rule.spec.export_to or ["*"]}
    return "*" in places or bool(places & clients)


def _settings(policy: TrafficPolicy | None, port: int) -> tuple[str, bool, str]:
    """TLS mode, whether HTTP/2 is used, and the field path. Settings for the port replace the general ones entirely."""
    if policy is None:
        return "", False, "spec.trafficPolicy"
    for index, one in enumerate(policy.port_level_settings or ()):
        if one.port is not None and one.port.number == port:
            http = one.connection_pool.http if one.connection_pool else None
            upgrade = http is not None and http.h2_upgrade_policy == "UPGRADE"
            field = f"spec.trafficPolicy.portLevelSettings[{index}]"
            return (one.tls.mode if one.tls else "", upgrade, field)
    http = policy.connection_pool.http if policy.connection_pool else None
    upgrade = http is not None and http.h2_upgrade_policy == "UPGRADE"
    return (policy.tls.mode if policy.tls else "", upgrade, "spec.trafficPolicy")


_Direction = Literal["Egress", "Ingress"]


def egress(facts: Facts) -> Iterator[Finding]:
    """Egress policies of the workloads' namespaces."""
    if not _may_judge(facts):
        return
    closed: dict[str, list[Pod]] = {}
    for pod in facts.injected:
        policies = _selecting(pod, facts, "Egress")
        rules = [rule for policy in policies for rule in policy.spec.egress or ()]
        if policies and not any(
            _allows(rule, _Way("Egress", pod, target), facts)
            for rule in rules
            for target in facts.wasmer_pods
        ):
            closed.setdefault(", ".join(one.where for one in policies[:3]), []).append(pod)
    for names, pods in closed.items():
        what = f"blocks connections of {len(pods)} Pods ({pods[0].where}{', …' if len(pods) > 1 else ''}) to wasmer: they cannot fetch the module"
        envoy = facts.server.envoy
        remedy = f"allow egress to namespace {envoy.service_namespace}, TCP {_target_port(facts)}"
        yield _finding(
            Level.ERROR, "PolicyEgress", f"NetworkPolicy {names}", what, remedy, field="spec.egress"
        )


def ingress(facts: Facts) -> Iterator[Finding]:
    """Ingress policies of wasmer's namespace."""
    if not _may_judge(facts):
        return
    for target in facts.wasmer_pods:
        policies = _selecting(target, facts, "Ingress")
        rules = [rule for policy in policies for rule in policy.spec.ingress or ()]
        kept = [
            pod
            for pod in facts.injected
            if policies
            and not any(_allows(rule, _Way("Ingress", pod, target), facts) for rule in rules)
        ]
        if kept:
            names = ", ".join(one.where for one in policies[:3])
            what = f"blocks connections of {len(kept)} Pods ({kept[0].where}{', …' if len(kept) > 1 else ''}) to wasmer's Pods: they cannot fetch the module"
            remedy = f"allow ingress from namespace {kept[0].metadata.namespace}, TCP {_target_port(facts)}"
            yield _finding(
                Level.ERROR,
                "PolicyIngress",
                f"NetworkPolicy {names}",
                what,
                remedy,
                field="spec.ingress",
            )
            return


def _may_judge(facts: Facts) -> bool:
    return (
        bool(facts.wasmer_pods)
        and facts.has_read("networkpolicies")
        and "namespaces" not in facts.unread
    )


def _selecting(pod: Pod, facts: Facts, direction: _Direction) -> list[NetworkPolicy]:
    return [
        policy
        for policy in facts.networkpolicies
        if policy.metadata.namespace == pod.metadata.namespace
        and direction in _types(policy)
        and policy.spec.pod_selector.matches(pod.labels)
    ]


def _types(policy: NetworkPolicy) -> Sequence[str]:
    """The policy's types. Default: Ingress, and Egress if there are egress rules."""
    if policy.spec.policy_types is not None:
        return policy.spec.policy_types
    return ("Ingress", "Egress") if policy.spec.egress else ("Ingress",)


def _allows(rule: PolicyRule, way: "_Way", facts: Facts) -> bool:
    """Whether the rule allows the traffic."""
    if rule.ports and not any(_is_ours(port, way.target, facts) for port in rule.ports):
        return False
    peers = rule.to if way.direction == "Egress" else rule.from_
    return not peers or any(_is_peer(peer, way, facts) for peer in peers)


@dataclass(frozen=True, slots=True)
class _Way:
    """Traffic from a workload's Pod to a Pod of wasmer; the policy is on one of the two ends."""

    direction: _Direction
    client: Pod
    target: Pod

    @property
    def ends(self) -> tuple[Pod, Pod]:
        """The Pod that the policy selects, and its peer."""
        pair = (self.client, self.target)
        return pair if self.direction == "Egress" else pair[::-1]


def _is_peer(peer: Peer, way: _Way, facts: Facts) -> bool:
    own, other = way.ends
    if peer.ip_block is not None:
        return True
    namespace = facts.namespaces.get(other.metadata.namespace)
    if peer.namespace_selector is None:
        if other.metadata.namespace != own.metadata.namespace:
            return False
    # A namespace that could not be read may match, so there is no error without evidence.
    elif namespace is not None and not peer.namespace_selector.matches(namespace.labels):
        return False
    return peer.pod_selector is None or peer.pod_selector.matches(other.labels)


def _is_ours(port: PolicyPort, target: Pod, facts: Facts) -> bool:
    if port.protocol != "TCP":
        return False
    number = _target_port(facts)
    if port.port is None:
        return True
    if isinstance(port.port, str):
        return any(one.name == port.port and one.container_port == number for one in target.ports)
    return port.port <= number <= (port.end_port or port.port)


def _target_port(facts: Facts) -> int:
    """The port of wasmer's Pods behind the Service's port, because policies match Pod ports."""
    wanted = facts.server.envoy.service_port
    service = facts.wasmer_service
    port = next((one for one in service.ports if one.port == wanted), None) if service else None
    if port is None or port.target_port is None:
        return wanted
    if isinstance(port.target_port, int):
        return port.target_port or wanted
    for pod in facts.wasmer_pods:
        for one in pod.ports:
            if one.name == port.target_port:
                return one.container_port
    return wanted


CHECKS: Final[tuple[Check, ...]] = (
    sidecars,
    exported,
    destination_rules,
    egress,
    ingress,
)
