"""Link Network, Istio's half: does a sidecar have a cluster for wasmer, and use it as it should?

Without the cluster a fetch fails at once (`envoy.md` 6), and nothing says so.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from autowasm.explain.facts import Facts
from autowasm.explain.finding import Check, Finding, Level, Link, Voice
from autowasm.explain.meshobjects import DestinationRule, Egress, Sidecar, TrafficPolicy
from autowasm.explain.objects import Pod

_say: Final = Voice(Link.NETWORK)
_EXPORT: Final = "networking.istio.io/exportTo"
_TLS: Final = frozenset({"SIMPLE", "MUTUAL"})


def sidecars(facts: Facts) -> Iterator[Finding]:
    """`Sidecar` resources whose egress leaves wasmer out."""
    hiding: dict[str, list[Pod]] = {}
    for pod in facts.injected:
        if pod.is_gateway:
            continue
        sidecar = _sidecar_of(pod, facts)
        if sidecar is not None and sidecar.spec.egress and not _imports(sidecar, pod, facts):
            hiding.setdefault(sidecar.where, []).append(pod)
    for name, pods in hiding.items():
        first = pods[0].where
        what = f"hides wasmer from {len(pods)} Pods ({first}{', …' if len(pods) > 1 else ''}): they cannot fetch the module"
        namespace = facts.server.envoy.service_namespace
        remedy = f"add {namespace}/{facts.host} to a list of egress hosts"
        yield _say(
            Level.ERROR,
            "SidecarEgress",
            f"Sidecar {name}",
            what,
            remedy,
            field="spec.egress[].hosts",
        )


def _sidecar_of(pod: Pod, facts: Facts) -> Sidecar | None:
    """The one that counts: with a selector that matches, else the namespace's, else the root namespace's."""
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
    """Whether a host of Istio's configuration, perhaps with a wildcard in front, is or holds `host`."""
    return pattern in {"*", host} or (pattern.startswith("*") and host.endswith(pattern[1:]))


def exported(facts: Facts) -> Iterator[Finding]:
    """The Service may be kept to its own namespace."""
    service = facts.wasmer_service
    if service is None:
        return
    name = f"Service {service.where}"
    said = service.annotations.get(_EXPORT)
    places = said.split(",") if said is not None else facts.mesh.default_service_export_to or ["*"]
    own = service.metadata.namespace
    hidden = sorted(
        {pod.metadata.namespace for pod in facts.injected}
        - {namespace for place in places for namespace in (_expand(place.strip(), own),)}
    )
    if hidden and "*" not in {place.strip() for place in places}:
        what = f"is exported to {', '.join(places)} only: sidecars of {', '.join(hidden[:3])} have no cluster for it"
        remedy = (
            f'kubectl annotate service -n {own} {service.metadata.name} --overwrite {_EXPORT}="*"'
        )
        where = f"metadata.annotations[{_EXPORT}]" if said is not None else ""
        yield _say(Level.ERROR, "NotExported", name, what, remedy, field=where)


def _expand(place: str, own: str) -> str:
    return own if place == "." else place


def destination_rules(facts: Facts) -> Iterator[Finding]:
    """Rules for wasmer's host that make a sidecar speak otherwise than wasmer does."""
    meshed = any(pod.proxy is not None for pod in facts.wasmer_pods)
    clients = {pod.metadata.namespace for pod in facts.injected}
    for rule in facts.destinationrules:
        if not _concerns(rule, facts, clients):
            continue
        name = f"DestinationRule {rule.where}"
        mode, http2, field = _settings(rule.spec.traffic_policy, facts.server.envoy.service_port)
        if mode in _TLS:
            what = f"makes sidecars speak TLS ({mode}) to wasmer, which has none: every fetch fails"
            remedy = "tls.mode: DISABLE for this host"
            yield _say(
                Level.ERROR, "DestinationRuleTls", name, what, remedy, field=f"{field}.tls.mode"
            )
        elif mode == "ISTIO_MUTUAL" and facts.wasmer_pods and not meshed:
            what = (
                "makes sidecars speak mTLS to wasmer, whose Pods have no sidecar: every fetch fails"
            )
            remedy = "tls.mode: DISABLE for this host, or give wasmer's Pods sidecars"
            yield _say(
                Level.ERROR, "DestinationRuleTls", name, what, remedy, field=f"{field}.tls.mode"
            )
        if http2:
            what = "makes sidecars speak HTTP/2 to wasmer, which speaks HTTP/1.1"
            remedy = "h2UpgradePolicy: DO_NOT_UPGRADE for this host"
            where = f"{field}.connectionPool.http.h2UpgradePolicy"
            yield _say(Level.ERROR, "DestinationRuleH2", name, what, remedy, field=where)
        if mode not in _TLS and not http2:
            what = f"holds for wasmer's host (tls {mode or 'not set'})"
            yield _say(Level.NOTE, "DestinationRule", name, what, field="spec.host")


def _concerns(rule: DestinationRule, facts: Facts, clients: set[str]) -> bool:
    """For wasmer's host, and seen by one of our Pods."""
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
    """TLS mode, whether HTTP/2, and where that stands: the port's own settings win whole."""
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


CHECKS: Final[tuple[Check, ...]] = (sidecars, exported, destination_rules)
