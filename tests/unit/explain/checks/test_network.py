"""`network.py` and `server.py`: the path between a sidecar and wasmer."""

from typing import Any

import msgspec
import pytest

from autowasm.explain.checks import network, server
from autowasm.explain.finding import Level
from autowasm.explain.objects import (
    DestinationRule,
    MeshSettings,
    NetworkPolicy,
    Pod,
    Service,
    ServiceEntry,
    Sidecar,
)
from autowasm.settings import EnvoyFetch
from tests.parts.explained import (
    decoded,
    endpoints,
    facts,
    findings_of,
    namespaces,
    pod,
    server_pod,
    server_service,
)

HOST = "wasmer.istio-system.svc.cluster.local"


def sidecar(hosts: list[str], *, namespace: str = "team", **spec: Any) -> Sidecar:
    document = {
        "metadata": {"name": "s", "namespace": namespace},
        "spec": {"egress": [{"hosts": hosts}], **spec},
    }
    return decoded(Sidecar, document)


@pytest.mark.parametrize(
    ("hosts", "hidden"),
    [
        (["./*"], True),
        (["~/*"], True),
        (["other/*"], True),
        (["istio-system/other.istio-system.svc.cluster.local"], True),
        (["istio-system/*"], False),
        (["*/*"], False),
        (["./*", f"istio-system/{HOST}"], False),
        (["*/*.svc.cluster.local"], False),
    ],
)
def test_sidecar_egress_hides_or_shows_wasmer(hosts: list[str], hidden: bool) -> None:
    found = findings_of(network.sidecars, facts(sidecars=(sidecar(hosts),)))
    assert ("SidecarEgress" in found) is hidden


@pytest.mark.parametrize(("port", "hidden"), [(9999, True), (8081, False), (0, False)])
def test_sidecar_egress_of_another_port_does_not_count(port: int, hidden: bool) -> None:
    given = sidecar([], egress=[{"hosts": ["*/*"], "port": {"number": port}}])
    assert ("SidecarEgress" in findings_of(network.sidecars, facts(sidecars=(given,)))) is hidden


def test_sidecar_with_a_matching_selector_wins_over_the_namespace() -> None:
    chosen = sidecar(["*/*"], workloadSelector={"labels": {"app": "details"}})
    assert not findings_of(network.sidecars, facts(sidecars=(sidecar(["./*"]), chosen)))
    other = sidecar(["*/*"], workloadSelector={"labels": {"app": "other"}})
    assert findings_of(network.sidecars, facts(sidecars=(other, sidecar(["./*"]))))


def test_sidecar_of_the_root_namespace_counts_where_there_is_no_other() -> None:
    root = sidecar(["./*"], namespace="istio-system")
    assert findings_of(network.sidecars, facts(sidecars=(root,)))
    assert not findings_of(network.sidecars, facts(sidecars=(root, sidecar(["*/*"]))))


def test_gateways_have_no_sidecar_resource() -> None:
    gateway = pod(args=("proxy", "router"))
    assert not findings_of(network.sidecars, facts(pods=(gateway,), sidecars=(sidecar(["./*"]),)))


@pytest.mark.parametrize(
    ("export", "hidden"), [(".", True), ("*", False), ("team", False), ("~", True)]
)
def test_export_of_the_service(export: str, hidden: bool) -> None:
    service = server_service(**{"networking.istio.io/exportTo": export})
    assert ("NotExported" in findings_of(network.exported, facts(wasmer_service=service))) is hidden


def rule(policy: dict[str, Any], *, host: str = HOST, **spec: Any) -> DestinationRule:
    document = {
        "metadata": {"name": "r", "namespace": "team"},
        "spec": {"host": host, "trafficPolicy": policy, **spec},
    }
    return decoded(DestinationRule, document)


UPGRADE = {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}


@pytest.mark.parametrize(
    ("policy", "check"),
    [
        ({"tls": {"mode": "SIMPLE"}}, "DestinationRuleTls"),
        ({"tls": {"mode": "ISTIO_MUTUAL"}}, "DestinationRuleTls"),
        (
            {"portLevelSettings": [{"port": {"number": 8081}, "tls": {"mode": "MUTUAL"}}]},
            "DestinationRuleTls",
        ),
        (UPGRADE, "DestinationRuleH2"),
    ],
)
def test_destination_rule_that_breaks_the_fetch(policy: dict[str, Any], check: str) -> None:
    found = findings_of(network.destination_rules, facts(destinationrules=(rule(policy),)))
    assert found[check].level is Level.ERROR


@pytest.mark.parametrize(
    "given",
    [
        rule({"tls": {"mode": "DISABLE"}}),
        rule({"tls": {"mode": "SIMPLE"}}, host="other.team.svc.cluster.local"),
        rule({"tls": {"mode": "SIMPLE"}}, exportTo=["elsewhere"]),
        rule(
            {
                "tls": {"mode": "SIMPLE"},
                "portLevelSettings": [{"port": {"number": 8081}, "tls": {"mode": "DISABLE"}}],
            }
        ),
        rule({"tls": {"mode": "SIMPLE"}}, workloadSelector={"matchLabels": {"app": "other"}}),
    ],
)
def test_harmless_destination_rule_causes_no_warning(given: DestinationRule) -> None:
    found = findings_of(network.destination_rules, facts(destinationrules=(given,)))
    assert all(one.level < Level.WARNING for one in found.values())


@pytest.mark.parametrize(
    ("namespace", "host", "found"),
    [
        ("istio-system", "wasmer", True),
        ("team", "wasmer", False),
        ("team", "wasmer.istio-system", True),
        ("team", "*", True),
    ],
)
def test_a_short_host_is_of_the_rules_own_namespace(namespace: str, host: str, found: bool) -> None:
    given = rule({"tls": {"mode": "SIMPLE"}}, host=host)
    given = msgspec.structs.replace(
        given, metadata=msgspec.structs.replace(given.metadata, namespace=namespace)
    )
    seen = findings_of(network.destination_rules, facts(destinationrules=(given,)))
    assert ("DestinationRuleTls" in seen) is found


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"trafficPolicy": {"portLevelSettings": [{"tls": {"mode": "SIMPLE"}}]}},
        {
            "trafficPolicy": {
                "portLevelSettings": [{"port": {"number": 9}, "tls": {"mode": "SIMPLE"}}]
            }
        },
    ],
)
def test_a_destination_rule_without_settings_for_the_port_is_a_note(spec: dict[str, Any]) -> None:
    document = {"metadata": {"name": "r", "namespace": "team"}, "spec": {"host": HOST, **spec}}
    given = facts(destinationrules=(decoded(DestinationRule, document),))
    found = findings_of(network.destination_rules, given)["DestinationRule"]
    assert (found.level, found.what) == (Level.NOTE, "applies to wasmer's host (tls.mode not set)")


def policy(namespace: str, **spec: Any) -> NetworkPolicy:
    document = {
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }
    return decoded(NetworkPolicy, document)


SYSTEM = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "istio-system"}}}


@pytest.mark.parametrize(
    ("egress", "closed"),
    [
        ([], True),
        ([{"to": [{"podSelector": {}}]}], True),
        ([{"to": [SYSTEM], "ports": [{"port": 53}]}], True),
        ([{"to": [SYSTEM], "ports": [{"port": 8081, "protocol": "UDP"}]}], True),
        ([{"to": [{**SYSTEM, "podSelector": {"matchLabels": {"app": "other"}}}]}], True),
        ([{"to": [{"namespaceSelector": {"matchLabels": {"other": "yes"}}}]}], True),
        ([{}], False),
        ([{"to": [SYSTEM]}], False),
        ([{"to": [SYSTEM], "ports": [{"protocol": "TCP"}]}], False),
        ([{"to": [SYSTEM], "ports": [{"port": 8000, "endPort": 9000}]}], False),
        ([{"to": [SYSTEM], "ports": [{"port": "http-wasm"}]}], False),
        ([{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}], False),
    ],
)
def test_egress_policy(egress: list[Any], closed: bool) -> None:
    given = facts(
        namespaces=namespaces(istio_system={"kubernetes.io/metadata.name": "istio-system"}),
        networkpolicies=(policy("team", policyTypes=["Egress"], egress=egress),),
    )
    assert bool(findings_of(network.egress, given)) is closed


def test_egress_needs_one_policy_that_allows() -> None:
    shut = policy("team", policyTypes=["Egress"], egress=[])
    other = policy("team", policyTypes=["Egress"], egress=[{}])
    assert not findings_of(network.egress, facts(networkpolicies=(shut, other)))


@pytest.mark.parametrize(
    ("ingress", "closed"),
    [
        ([{"from": [{"podSelector": {}}]}], True),
        ([{"ports": [{"port": 9999}]}], True),
        ([{"from": [{"namespaceSelector": {}}], "ports": [{"port": 8081}]}], False),
        ([{"ports": [{"port": "http-wasm"}]}], False),
    ],
)
def test_ingress_policy_of_the_server(ingress: list[Any], closed: bool) -> None:
    given = facts(networkpolicies=(policy("istio-system", ingress=ingress),))
    assert bool(findings_of(network.ingress, given)) is closed


def test_a_policy_of_the_clients_own_namespace_reaches_a_server_there() -> None:
    near = decoded(
        Pod,
        {
            "metadata": {"name": "wasmer-0", "namespace": "team", "labels": {"app": "w"}},
            "status": {"podIPs": [{"ip": "10.9.9.9"}]},
        },
    )
    for labels, closed in (({"app": "w"}, False), ({"app": "x"}, True)):
        egress = [{"to": [{"podSelector": {"matchLabels": labels}}]}]
        shut = policy("team", policyTypes=["Egress"], egress=egress)
        given = facts(wasmer_pods=(near,), networkpolicies=(shut,))
        assert bool(findings_of(network.egress, given)) is closed


@pytest.mark.parametrize(
    ("ports", "number"),
    [
        ([{"name": "http-wasm", "port": 8081, "targetPort": 7000}], 7000),
        ([{"name": "http-wasm", "port": 8081, "targetPort": 0}], 8081),
        ([{"name": "http-wasm", "port": 8081}], 8081),
        ([{"name": "http-wasm", "port": 8081, "targetPort": "absent"}], 8081),
        ([{"name": "other", "port": 1, "targetPort": 7000}], 8081),
    ],
)
def test_policies_are_compared_with_the_port_of_the_servers_pods(
    ports: list[dict[str, Any]], number: int
) -> None:
    metadata = {"name": "wasmer", "namespace": "istio-system"}
    service = decoded(Service, {"metadata": metadata, "spec": {"ports": ports}})
    for allowed, closed in ((number, False), (9, True)):
        ingress = [{"ports": [{"port": allowed}]}]
        given = facts(
            wasmer_service=service, networkpolicies=(policy("istio-system", ingress=ingress),)
        )
        assert bool(findings_of(network.ingress, given)) is closed


def test_unreadable_network_policies_cause_no_finding() -> None:
    shut = policy("team", policyTypes=["Egress"], egress=[])
    given = facts(networkpolicies=(shut,), unread={"networkpolicies": "RBAC"})
    assert not findings_of(network.egress, given)


def test_server_without_service_or_port_or_replica() -> None:
    assert findings_of(server.service, facts(wasmer_service=None))["NoService"].level is Level.ERROR
    bare = decoded(Service, {"metadata": {"name": "wasmer", "namespace": "istio-system"}})
    assert findings_of(server.service, facts(wasmer_service=bare))["NoService"].level is Level.ERROR
    assert not findings_of(server.service, facts())
    unready = facts(wasmer_pods=(server_pod(ready="False"),))
    assert findings_of(server.replicas, unready)["NoReplica"].level is Level.ERROR
    assert findings_of(server.replicas, facts())["Replicas"].level is Level.OK
    assert not findings_of(
        server.service, facts(wasmer_service=None, unread={"wasmer service": "RBAC"})
    )


def test_a_port_of_the_service_that_istio_does_not_take_for_http_is_noted() -> None:
    metadata = {"name": "wasmer", "namespace": "istio-system"}
    for port, said_of_it in (({}, "no name"), ({"name": "wasm"}, "the name wasm")):
        document = {"metadata": metadata, "spec": {"ports": [{"port": 8081, **port}]}}
        found = findings_of(server.service, facts(wasmer_service=decoded(Service, document)))[
            "PortName"
        ]
        assert found.level is Level.NOTE
        assert f"port 8081 has {said_of_it}:" in found.what
    document = {"metadata": metadata, "spec": {"ports": [{"port": 8081, "appProtocol": "http"}]}}
    assert not findings_of(server.service, facts(wasmer_service=decoded(Service, document)))


def test_endpoints_that_are_not_wasmers() -> None:
    assert not findings_of(server.elsewhere, facts())
    foreign = facts(wasmer_endpoints=(endpoints("10.9.9.9", "10.77.0.1"),))
    assert "10.77.0.1" in findings_of(server.elsewhere, foreign)["ForeignEndpoint"].what
    entry = decoded(
        ServiceEntry, {"metadata": {"name": "e", "namespace": "x"}, "spec": {"hosts": [HOST]}}
    )
    assert findings_of(server.entries, facts(serviceentries=(entry,)))
    metadata = {"name": "e", "namespace": "x"}
    other = decoded(ServiceEntry, {"metadata": metadata, "spec": {"hosts": ["other.example"]}})
    assert not findings_of(server.entries, facts(serviceentries=(other,)))


def test_merged_clusters_unless_kept_local() -> None:
    labelled = namespaces(istio_system={"topology.istio.io/network": "one"})
    assert findings_of(server.multi_cluster, facts(namespaces=labelled))
    local = {
        "serviceSettings": [
            {"settings": {"clusterLocal": True}, "hosts": ["*.istio-system.svc.cluster.local"]}
        ]
    }
    settled = facts(namespaces=labelled, mesh=decoded(MeshSettings, local))
    assert not findings_of(server.multi_cluster, settled)
    assert not findings_of(server.multi_cluster, facts())


def test_cluster_override_is_reported() -> None:
    given = facts()
    other = type(given.server)(known=True, envoy=EnvoyFetch(cluster_override="x"))
    assert "ClusterOverride" in findings_of(server.service, facts(server=other))
