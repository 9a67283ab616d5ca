"""WasmPlugin and TrafficExtension of Istio, WasmPlugin of Higress: what becomes of each field."""

from typing import Any

import pytest

from autowasm.api.validation import parse
from autowasm.convert.conversion import Batch, Conversion
from autowasm.convert.dispatch import converter_of

DETAILS = {"matchLabels": {"app": "details"}}
DIGEST = "a" * 64
LABEL = "gateway.networking.k8s.io/gateway-name"


def convert(
    spec: dict[str, Any],
    *,
    kind: str = "WasmPlugin",
    group: str = "extensions.istio.io",
    gateway: bool = False,
    **metadata: Any,
) -> Conversion:
    source = {
        "apiVersion": f"{group}/v1alpha1",
        "kind": kind,
        "metadata": {"name": "hello", **metadata},
        "spec": spec,
    }
    converter = converter_of(source)
    assert converter is not None
    found = converter(source, Batch([source], gateway=gateway))
    for document in found.autowasms:
        parse(document)
    return found


def plugin(**fields: Any) -> dict[str, Any]:
    """Of one direction, so that there is one AutoWasm."""
    return {
        "selector": DETAILS,
        "url": "oci://r.example/a/b:v1",
        "match": [{"mode": "SERVER"}],
        **fields,
    }


def only(found: Conversion) -> dict[str, Any]:
    (document,) = found.autowasms
    spec: dict[str, Any] = document["spec"]
    return spec


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"source": {"registry": {"image": "r.example/a/b:v1"}}}),
        ({"url": "r.example/a/b"}, {"source": {"registry": {"image": "r.example/a/b"}}}),
        ({"sha256": DIGEST}, {"source": {"registry": {"image": f"r.example/a/b@sha256:{DIGEST}"}}}),
        ({"url": "r.example:5000/b", "sha256": DIGEST}, {"source": {"registry": {"image": f"r.example:5000/b@sha256:{DIGEST}"}}}),
        ({"url": f"oci://r.example/b@sha256:{DIGEST}", "sha256": DIGEST}, {"source": {"registry": {"image": f"r.example/b@sha256:{DIGEST}"}}}),
        ({"url": "https://h.example/b.wasm", "sha256": DIGEST}, {"source": {"object": {"url": "https://h.example/b.wasm"}}, "sha256": DIGEST}),
        ({"imagePullPolicy": "Always"}, {"pullPolicy": "Always"}),
        ({"imagePullPolicy": "UNSPECIFIED_POLICY"}, {}),
        ({"pluginName": "root"}, {"rootID": "root"}),
        ({"pluginConfig": {"a": [1, {"b": None}]}}, {"pluginConfig": {"a": [1, {"b": None}]}}),
        ({"failStrategy": "FAIL_OPEN"}, {"failStrategy": "FAIL_OPEN"}),
        ({"failStrategy": "FAIL_CLOSE"}, {}),
        ({"vmConfig": {"env": [{"name": "A", "value": "b"}, {"name": "C", "valueFrom": "INLINE"}]}},
         {"env": [{"name": "A", "value": "b"}, {"name": "C", "value": ""}]}),
        ({"priority": 10}, {"priority": -10}),
        ({"priority": 0}, {}),
        ({"phase": "AUTHN"}, {"position": "First"}),
        ({"phase": "AUTHN", "priority": 10}, {"position": "First", "priority": 10}),
        ({"phase": "UNSPECIFIED_PHASE"}, {}),
        ({"match": [{"mode": "SERVER", "ports": [{"number": 9080}]}, {"mode": "SERVER", "ports": [{"number": 80}]}]},
         {"applyPorts": [80, 9080]}),
        ({"match": [{"mode": "SERVER", "ports": [{"number": 9080}]}, {"mode": "SERVER"}]}, {}),
        ({"match": [{"mode": "CLIENT"}]}, {"context": "SIDECAR_OUTBOUND"}),
    ],
)  # fmt: skip
def test_field_of_a_plugin_becomes_the_field_of_the_filter(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = convert(plugin(**fields))
    assert not found.losses
    filter_ = only(found)["filter"]
    image = {"source": {"registry": {"image": "r.example/a/b:v1"}}}
    assert filter_ == image | expected


def test_pull_secret_and_names_stay() -> None:
    found = convert(plugin(imagePullSecret="login"), namespace="shop", labels={"a": "b"})
    (document,) = found.autowasms
    assert document["metadata"] == {"name": "hello", "namespace": "shop", "labels": {"a": "b"}}
    assert document["spec"]["secret"] == "login"
    assert document["spec"]["selector"] == DETAILS


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (None, {"inbound": None, "outbound": None}),
        ([{}], {"inbound": None, "outbound": None}),
        ([{"mode": "CLIENT_AND_SERVER", "ports": [{"number": 80}]}], {"inbound": [80], "outbound": [80]}),
        ([{"mode": "SERVER", "ports": [{"number": 9080}]}, {"mode": "CLIENT", "ports": [{"number": 80}]}],
         {"inbound": [9080], "outbound": [80]}),
    ],
)  # fmt: skip
def test_each_direction_is_an_autowasm(
    match: list[Any] | None, expected: dict[str, list[int] | None]
) -> None:
    found = convert({"selector": DETAILS, "url": "oci://r.example/a", "match": match})
    contexts = {"inbound": None, "outbound": "SIDECAR_OUTBOUND"}
    assert {one["metadata"]["name"] for one in found.autowasms} == {
        f"hello-{name}" for name in expected
    }
    for document in found.autowasms:
        name = document["metadata"]["name"].removeprefix("hello-")
        filter_ = document["spec"]["filter"]
        assert filter_.get("applyPorts") == expected[name]
        assert filter_.get("context") == contexts[name]


@pytest.mark.parametrize(
    "labels",
    [
        {"istio": "ingressgateway"},
        {"istio": "ingress"},
        {"app": "istio-egressgateway"},
        {LABEL: "edge"},
        {"higress": "x"},
    ],
)
def test_plugin_of_a_gateway_has_the_gateway_context(labels: dict[str, str]) -> None:
    found = convert({"selector": {"matchLabels": labels}, "url": "oci://r.example/a"})
    assert only(found)["filter"]["context"] == "GATEWAY"
    flagged = convert({"selector": DETAILS, "url": "oci://r.example/a"}, gateway=True)
    assert only(flagged)["filter"]["context"] == "GATEWAY"


def test_workload_that_is_called_a_gateway_is_one_with_the_flag_only() -> None:
    """Where the guess is wrong, the filter would be nowhere."""
    spec = {
        "selector": {"matchLabels": {"app": "payment-gateway"}},
        "url": "oci://r.example/a",
        "match": [{"mode": "SERVER"}],
    }
    found = convert(spec)
    assert "context" not in only(found)["filter"]
    assert [one.path for one in found.notes] == ["spec.selector"]
    assert "--gateway" in found.notes[0].problem


def test_secret_of_a_plugin_with_a_url_has_no_effect() -> None:
    found = convert(plugin(url="https://h.example/b.wasm", imagePullSecret="login"))
    assert "secret" not in only(found)
    assert [one.path for one in found.notes] == ["spec.imagePullSecret"]


def test_target_gateway_is_selected_by_the_label_that_istio_gives_its_pods() -> None:
    refs = [{"kind": "Gateway", "name": "edge"}]
    found = convert({"targetRefs": refs, "url": "oci://r.example/a"})
    assert not found.losses
    assert only(found)["selector"] == {"matchLabels": {LABEL: "edge"}}
    assert only(found)["filter"]["context"] == "GATEWAY"


def test_plugin_without_selector_is_for_all_pods_and_gateways() -> None:
    found = convert({"url": "oci://r.example/a"})
    contexts = {one["spec"]["filter"].get("context") for one in found.autowasms}
    assert contexts == {None, "SIDECAR_OUTBOUND", "GATEWAY"}
    assert all(one["spec"]["selector"] == {"matchLabels": {}} for one in found.autowasms)
    assert [one.path for one in found.notes] == ["spec.selector", "spec.phase"]


@pytest.mark.parametrize(
    ("fields", "path", "is_converted"),
    [
        ({"url": "file:///opt/a.wasm"}, "spec.url", False),
        ({"type": "NETWORK"}, "spec.type", False),
        ({"targetRefs": [{"kind": "Service", "name": "a"}]}, "spec.targetRefs", False),
        ({"targetRefs": [{"kind": "Gateway", "name": "a"}, {"kind": "Gateway", "name": "b"}], "match": []},
         "spec.targetRefs", True),
        ({"phase": "AUTHZ"}, "spec.phase", True),
        ({"phase": "STATS"}, "spec.phase", True),
        ({"vmConfig": {"env": [], "other": 1}}, "spec.vmConfig.other", True),
        ({"match": [{"mode": "INBOUND"}, {"mode": "SERVER"}]}, "spec.match[0].mode", True),
        ({"match": [{"ports": [{}]}]}, "spec.match[0].ports", False),
        ({"match": [{"mode": "SERVER", "paths": ["/"]}]}, "spec.match[0].paths", True),
        ({"selector": {"matchLabels": {"a": "b"}, "matchExpressions": [1]}}, "spec.selector.matchExpressions", True),
        ({"targetRefs": [{"kind": "Gateway", "name": "waypoint"}]}, "spec.targetRefs", False),
        ({"vmConfig": {"env": [{"name": "A", "valueFrom": "HOST"}]}}, "spec.vmConfig.env[0]", True),
        ({"imagePullPolicy": "Never"}, "spec.imagePullPolicy", True),
        ({"newField": {"a": 1}}, "spec.newField", True),
    ],
)  # fmt: skip
def test_fields_without_an_equivalent_in_autowasm_are_named(
    fields: dict[str, Any], path: str, is_converted: bool
) -> None:
    found = convert(plugin(**fields))
    assert [one.path for one in found.losses] == [path]
    assert bool(found.autowasms) is is_converted


@pytest.mark.parametrize("labels", [{"istio": "ingressgateway"}, {"app": "details"}])
def test_server_mode_of_a_gateway_is_lost_without_an_autowasm(labels: dict[str, str]) -> None:
    found = convert(plugin(selector={"matchLabels": labels}), gateway=not labels.keys() & {"istio"})
    assert [one.path for one in found.losses] == ["spec.match"]
    assert not found.autowasms


def test_traffic_extension_has_its_module_in_wasm() -> None:
    wasm = {
        "url": "oci://r.example/a",
        "pluginConfig": {"a": 1},
        "vmConfig": {"env": [{"name": "A", "valueFrom": "HOST"}]},
    }
    spec = {"selector": DETAILS, "match": [{"mode": "SERVER"}], "priority": 3, "wasm": wasm}
    found = convert(spec, kind="TrafficExtension")
    assert only(found)["filter"] == {
        "source": {"registry": {"image": "r.example/a"}},
        "pluginConfig": {"a": 1},
        "priority": -3,
    }
    assert [one.path for one in found.losses] == ["spec.wasm.vmConfig.env[0]"]
    lua = convert({"lua": {"inlineCode": "x"}}, kind="TrafficExtension")
    assert [one.path for one in lua.losses] == ["spec.lua"]


def test_field_without_effect_in_istio_is_a_note() -> None:
    found = convert(plugin(verificationKey="x"))
    assert not found.losses
    assert [one.path for one in found.notes] == ["spec.verificationKey"]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (plugin(phase="AUTHN"), "external authorization"),
        (plugin(match=[{"mode": "CLIENT"}]), "corsPolicy"),
        ({"targetRefs": [{"kind": "Gateway", "name": "edge"}], "url": "a", "phase": "AUTHZ"}, "waypoints"),
    ],
)  # fmt: skip
def test_filters_that_are_on_the_other_side_are_noted(spec: dict[str, Any], told: str) -> None:
    assert [told in one.problem for one in convert(spec).notes] == [True]


@pytest.mark.parametrize("secret", ["login", "other/login", "kubernetes://login"])
def test_pull_secret_is_in_the_namespace_of_the_object(secret: str) -> None:
    assert only(convert(plugin(imagePullSecret=secret)))["secret"] == "login"


def higress(**fields: Any) -> Conversion:
    spec = {"url": "oci://r.example/a", **fields}
    return convert(spec, group="extensions.higress.io", namespace="edge")


def test_higress_plugin_is_for_its_gateways_with_its_default_configuration() -> None:
    found = higress(defaultConfig={"a": 1}, defaultConfigDisable=False, selector=DETAILS)
    assert not found.losses
    assert only(found) == {
        "selector": {"matchLabels": {"higress": "edge-higress-gateway"}},
        "filter": {
            "source": {"registry": {"image": "r.example/a"}},
            "pluginConfig": {"a": 1},
            "context": "GATEWAY",
        },
    }


def test_rules_of_a_higress_plugin_are_in_the_configuration_as_higress_writes_them() -> None:
    rules = [
        {"ingress": ["a/b"], "service": ["s"], "domain": ["d"], "config": {"k": 1}},
        {"domain": ["e"]},
        {"domain": ["f"], "config": {"k": 2}, "configDisable": True},
    ]
    written = [
        {"k": 1, "_match_route_": ["a/b"], "_match_service_": ["s"], "_match_domain_": ["d"]},
        {"_match_domain_": ["e"]},
    ]
    found = higress(defaultConfig={"a": 1}, matchRules=rules)
    assert not found.losses
    assert only(found)["filter"]["pluginConfig"] == {"a": 1, "_rules_": written}
    without = higress(defaultConfig={"a": 1}, defaultConfigDisable=True, matchRules=rules)
    assert only(without)["filter"]["pluginConfig"] == {"_rules_": written}
    own = higress(pluginConfig={"b": 2}, defaultConfig={"a": 1}, matchRules=rules)
    assert only(own)["filter"]["pluginConfig"] == {"b": 2}


@pytest.mark.parametrize(
    ("fields", "path", "is_converted"),
    [
        ({"defaultConfigDisable": True}, "spec.defaultConfigDisable", False),
        ({"matchRules": [{"config": {"a": 1}}]}, "spec.matchRules[0]", True),
        ({"matchRules": [{"ingress": ["a"], "routeType": "GRPC"}]}, "spec.matchRules[0].routeType", True),
        ({"matchRules": [{"ingress": ["a"], "later": 1}]}, "spec.matchRules[0].later", True),
    ],
)  # fmt: skip
def test_lost_fields_of_a_higress_plugin_are_named(
    fields: dict[str, Any], path: str, is_converted: bool
) -> None:
    found = higress(**fields)
    assert [one.path for one in found.losses] == [path]
    assert bool(found.autowasms) is is_converted
