"""`pods.py` and `ports.py`: selected Pods, their proxies, and the listeners of the ports."""

import pytest

from autowasm.explain.checks import pods, ports
from autowasm.explain.finding import Level
from autowasm.explain.objects import MeshSettings, Pod
from tests.parts.explained import autowasm, decoded, facts, findings_of, namespaces, pod, service


def test_pods_that_match() -> None:
    assert findings_of(pods.matched, facts())["Pods"].level is Level.OK


def test_no_pod_names_the_label_in_the_way() -> None:
    near = decoded(
        Pod, {"metadata": {"name": "x", "namespace": "team", "labels": {"app": "detail"}}}
    )
    found = findings_of(pods.matched, facts(pods=(), neighbours=(near,)))["NoPod"]
    assert found.level is Level.WARNING
    assert "app=details: the Pods have detail" in found.what
    assert not findings_of(pods.matched, facts(pods=(), unread={"pods": "RBAC"}))


def test_labels_that_pods_have_are_not_named_as_in_the_way() -> None:
    document = autowasm()
    document["spec"]["selector"]["matchLabels"] = {"app": "details", "version": "v2"}
    near = decoded(
        Pod,
        {
            "metadata": {
                "name": "x",
                "namespace": "team",
                "labels": {"app": "details", "version": "v1"},
            }
        },
    )
    found = findings_of(pods.matched, facts(document, pods=(), neighbours=(near,)))["NoPod"]
    assert "(version=v2: the Pods have v1)" in found.what


def test_pods_without_proxy() -> None:
    assert not findings_of(pods.injected, facts())
    alone = facts(pods=(pod(proxy=False),))
    assert findings_of(pods.injected, alone)["NotInjected"].level is Level.ERROR
    mixed = facts(pods=(pod(), pod("b", proxy=False)))
    found = findings_of(pods.injected, mixed)["NotInjected"]
    assert found.level is Level.WARNING
    assert "1 of 2" in found.what


@pytest.mark.parametrize(
    ("labels", "annotations", "namespace", "why"),
    [
        ({}, {}, {}, "does not enable injection"),
        ({"sidecar.istio.io/inject": "false"}, {}, {}, "sidecar.istio.io/inject is false"),
        ({}, {"sidecar.istio.io/inject": "false"}, {}, "sidecar.istio.io/inject is false"),
        ({}, {"ambient.istio.io/redirection": "enabled"}, {}, "ambient"),
        ({}, {}, {"istio-injection": "enabled"}, "started before"),
        ({}, {}, {"istio-injection": "disabled"}, "disabled"),
        ({"sidecar.istio.io/inject": "true"}, {}, {}, "they request injection"),
    ],
)
def test_why_there_is_no_proxy(
    labels: dict[str, str], annotations: dict[str, str], namespace: dict[str, str], why: str
) -> None:
    bare = pod(proxy=False, labels=labels, annotations=annotations)
    given = facts(pods=(bare,), namespaces=namespaces(team=namespace))
    assert why in findings_of(pods.injected, given)["NotInjected"].what


def test_pods_on_the_hosts_network_and_in_an_unknown_namespace_have_their_reason() -> None:
    on_host = decoded(
        Pod,
        {
            "metadata": {"name": "x", "namespace": "team", "labels": {"app": "details"}},
            "spec": {"hostNetwork": True},
        },
    )
    assert "host network" in findings_of(pods.injected, facts(pods=(on_host,)))["NotInjected"].what
    unknown = facts(pods=(pod(proxy=False),), namespaces={})
    assert (
        "namespace team could not be read"
        in findings_of(pods.injected, unknown)["NotInjected"].what
    )


def test_proxies_older_than_the_oldest_supported_istio_are_named() -> None:
    old = pod(image="istio/proxyv2:1.7.9")
    found = findings_of(pods.versions, facts(pods=(old, pod("b"))))["OldProxy"]
    assert found.level is Level.WARNING
    assert "1 proxies are older than Istio 1.8" in found.what
    assert "OldProxy" not in findings_of(
        pods.versions, facts(pods=(pod(image="istio/proxyv2:1.8.0"),))
    )


@pytest.mark.parametrize(
    ("image", "level"),
    [
        ("istio/proxyv2:1.24.3", Level.WARNING),
        ("istio/proxyv2:1.9.0-distroless", Level.WARNING),
        ("istio/proxyv2:1.25.0", None),
        ("registry.example:5000/proxyv2:1.30-alpha", None),
        ("istio/proxyv2@sha256:00", Level.NOTE),
        ("istio/proxyv2:latest", Level.NOTE),
    ],
)
def test_fail_reload_and_the_proxies_version(image: str, level: Level | None) -> None:
    given = facts(autowasm(failStrategy="FAIL_RELOAD"), pods=(pod(image=image),))
    found = findings_of(pods.versions, given).get("FailStrategy")
    assert (found.level if found else None) is level
    assert "FailStrategy" not in findings_of(pods.versions, facts(pods=(pod(image=image),)))


def test_context_of_gateways_and_sidecars() -> None:
    assert not findings_of(pods.context, facts())
    gateway = pod(args=("proxy", "router"))
    assert findings_of(pods.context, facts(pods=(gateway,)))["WrongContext"].level is Level.ERROR
    wanted = autowasm(context="GATEWAY")
    assert not findings_of(pods.context, facts(wanted, pods=(gateway,)))
    assert findings_of(pods.context, facts(wanted))["WrongContext"].level is Level.ERROR


def test_discovery_selectors() -> None:
    mesh = decoded(MeshSettings, {"discoverySelectors": [{"matchLabels": {"mesh": "yes"}}]})
    found = list(pods.discovery(facts(mesh=mesh)))
    assert {one.object for one in found} == {"Namespace team", "Namespace istio-system"}
    labels = {"mesh": "yes"}
    seen = namespaces(team=labels, istio_system=labels)
    assert not findings_of(pods.discovery, facts(mesh=mesh, namespaces=seen))
    assert not findings_of(pods.discovery, facts())


def test_root_namespace_of_mesh_and_wasmer() -> None:
    assert not findings_of(pods.root_namespace, facts())
    mesh = MeshSettings(root_namespace="istio-config")
    assert (
        findings_of(pods.root_namespace, facts(mesh=mesh))["RootNamespace"].level is Level.WARNING
    )


def test_port_with_a_service() -> None:
    assert findings_of(ports.served, facts())["Port"].level is Level.OK
    named = facts(services=(service(target="web"),))
    assert findings_of(ports.served, named)["Port"].level is Level.OK


def test_a_service_without_a_target_port_leads_to_its_own_port() -> None:
    assert findings_of(ports.served, facts(services=(service(port=9080, target=0),)))["Port"]


def test_pods_that_no_service_leads_to_are_counted() -> None:
    other = pod("b", labels={"app": "other"})
    found = findings_of(ports.served, facts(pods=(pod(), other)))["NoServicePort"]
    assert found.level is Level.WARNING
    assert "no Service targets port 9080 of 1 of 2 Pods" in found.what


def test_port_of_the_service_instead_of_the_pods() -> None:
    given = facts(autowasm(applyPorts=[80]))
    found = findings_of(ports.served, given)["ServicePortNamed"]
    assert found.level is Level.ERROR
    assert found.remedy == "use 9080 instead of 80"
    assert found.field == "spec.filter.applyPorts[0]"


def test_port_without_service() -> None:
    assert findings_of(ports.served, facts(services=()))["NoServicePort"].level is Level.ERROR
    found = findings_of(ports.served, facts(autowasm(applyPorts=[7]))).get("NoServicePort")
    assert found is not None
    assert "Services target 9080" in found.what
    assert not findings_of(ports.served, facts(services=(), unread={"services": "RBAC"}))


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("tcp-web", "NotHttp"),
        ("mysql", "NotHttp"),
        ("https", "NotHttp"),
        ("", "ProtocolGuessed"),
        ("web", "ProtocolGuessed"),
        ("http-web", "Port"),
        ("grpc", "Port"),
        ("grpc-web-x", "Port"),
    ],
)
def test_protocol_of_the_service_port(name: str, check: str) -> None:
    assert list(findings_of(ports.served, facts(services=(service(name),)))) == [check]


def test_port_that_no_container_exposes() -> None:
    assert not findings_of(ports.exposed, facts())
    assert (
        findings_of(ports.exposed, facts(autowasm(applyPorts=[7])))["NotExposed"].level
        is Level.WARNING
    )


@pytest.mark.parametrize(
    ("annotation", "value", "past"),
    [
        ("excludeInboundPorts", "9080, 15", True),
        ("excludeInboundPorts", "15", False),
        ("includeInboundPorts", "*", False),
        ("includeInboundPorts", "80", True),
        ("includeInboundPorts", "9080", False),
    ],
)
def test_traffic_past_the_sidecar(annotation: str, value: str, past: bool) -> None:
    given = pod(annotations={f"traffic.sidecar.istio.io/{annotation}": value})
    assert ("NotCaptured" in findings_of(ports.captured, facts(pods=(given,)))) is past


def test_the_annotation_that_lets_traffic_past_the_sidecar_is_named() -> None:
    prefix = "traffic.sidecar.istio.io"
    both = {f"{prefix}/excludeInboundPorts": "15", f"{prefix}/includeInboundPorts": "80"}
    given = findings_of(ports.captured, facts(pods=(pod(annotations=both),)))["NotCaptured"]
    assert given.remedy.endswith(f" {prefix}/includeInboundPorts")
    both[f"{prefix}/excludeInboundPorts"] = "9080"
    given = findings_of(ports.captured, facts(pods=(pod(annotations=both),)))["NotCaptured"]
    assert given.what.count("9080") == 1
    assert given.remedy.endswith(f"{prefix}/excludeInboundPorts and {prefix}/includeInboundPorts")


def test_pods_with_a_tunnel_are_reported_with_the_place_of_the_filter() -> None:
    tunnelled = pod(labels={"app": "details", "networking.istio.io/tunnel": "http"})
    assert not findings_of(ports.tunnel, facts())
    found = findings_of(ports.tunnel, facts(pods=(tunnelled, pod("details-2"))))
    assert "1 of 2 Pods" in found["Tunnel"].what
    assert "TunnelPort" not in found
    document = autowasm(applyPorts=[9080, 15008])
    warned = findings_of(ports.tunnel, facts(document, pods=(tunnelled,)))
    assert warned["TunnelPort"].level is Level.WARNING
    assert not findings_of(ports.tunnel, facts(autowasm(context="GATEWAY"), pods=(tunnelled,)))
