"""Link Network, Kubernetes' half: may the Pods speak to wasmer, as NetworkPolicies have it?

Not what a CNI adds to them (its own kinds of policy are not read). Invariant: a rule with an address block counts as one
that may let traffic through: what a CNI matches it with (before or after NAT) differs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Link, Voice
from autowasm.explain.objects import NetworkPolicy, Peer, Pod, PolicyPort, PolicyRule

_say: Final = Voice(Link.NETWORK)
_Direction = Literal["Egress", "Ingress"]


def egress(facts: Facts) -> Iterator[Finding]:
    """Policies of the workloads' namespaces."""
    if not _can_tell(facts):
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
        what = f"keeps {len(pods)} Pods ({pods[0].where}{', …' if len(pods) > 1 else ''}) from wasmer: they cannot fetch the module"
        envoy = facts.server.envoy
        remedy = f"allow egress to namespace {envoy.service_namespace}, TCP {_target_port(facts)}"
        yield _say(
            Level.ERROR, "PolicyEgress", f"NetworkPolicy {names}", what, remedy, field="spec.egress"
        )


def ingress(facts: Facts) -> Iterator[Finding]:
    """Policies of wasmer's namespace."""
    if not _can_tell(facts):
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
            what = f"lets {len(kept)} Pods ({kept[0].where}{', …' if len(kept) > 1 else ''}) not reach wasmer's Pods: they cannot fetch the module"
            remedy = f"allow ingress from namespace {kept[0].metadata.namespace}, TCP {_target_port(facts)}"
            yield _say(
                Level.ERROR,
                "PolicyIngress",
                f"NetworkPolicy {names}",
                what,
                remedy,
                field="spec.ingress",
            )
            return


def _can_tell(facts: Facts) -> bool:
    return (
        bool(facts.wasmer_pods)
        and facts.seen("networkpolicies")
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
    """Absent: Ingress, and Egress if there are rules for it."""
    if policy.spec.policy_types is not None:
        return policy.spec.policy_types
    return ("Ingress", "Egress") if policy.spec.egress else ("Ingress",)


def _allows(rule: PolicyRule, way: "_Way", facts: Facts) -> bool:
    """Whether the rule lets the traffic through."""
    if rule.ports and not any(_is_ours(port, way.target, facts) for port in rule.ports):
        return False
    peers = rule.to if way.direction == "Egress" else rule.from_
    return not peers or any(_is_peer(peer, way, facts) for peer in peers)


@dataclass(frozen=True, slots=True)
class _Way:
    """From a workload's Pod to one of wasmer's, as a policy on one of the two ends sees it."""

    direction: _Direction
    client: Pod
    target: Pod

    @property
    def ends(self) -> tuple[Pod, Pod]:
        """Whose policy it is, and the other one."""
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
    # What is not known may be allowed: only what is seen is called wrong.
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
    """The port of wasmer's Pods, behind the Service's: policies speak of Pods."""
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


CHECKS: Final[tuple[Check, ...]] = (egress, ingress)
