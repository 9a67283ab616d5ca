"""EnvoyFilters with remote Wasm, and EnvoyExtensionPolicies of Envoy Gateway: what becomes of each field."""

import json
from typing import Any

import pytest

from autowasm.api.envoyfilter import render
from autowasm.api.validation import parse
from autowasm.convert.conversion import Batch, Conversion
from autowasm.convert.dispatch import converter_of
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import autowasm, record

DIGEST = "a" * 64
URL = "https://h.example/a.wasm"
LABEL = "gateway.networking.k8s.io/gateway-name"
WASM = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
HCM = "envoy.filters.network.http_connection_manager"


def convert(source: dict[str, Any]) -> Conversion:
    converter = converter_of(source)
    assert converter is not None
    found = converter(source, Batch([source]))
    for document in found.autowasms:
        parse(document)
    return found


def value(**config: Any) -> dict[str, Any]:
    remote = {"httpUri": {"uri": URL, "cluster": "c", "timeout": "10s"}, "sha256": DIGEST}
    vm = {"runtime": "envoy.wasm.runtime.v8", "code": {"remote": remote}} | config.pop("vm", {})
    return {
        "name": "any",
        "typedConfig": {
            "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
            "typeUrl": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "value": {"config": {"name": "a", "vmConfig": vm, **config}},
        },
    }


def patch(
    filter_: dict[str, Any] | None = None,
    *,
    operation: str = "INSERT_BEFORE",
    anchor: str = "envoy.filters.http.router",
    context: str = "SIDECAR_INBOUND",
    port: int | None = 9080,
    listener: str = "",
    **match: Any,
) -> dict[str, Any]:
    inner = {"name": HCM} | ({"subFilter": {"name": anchor}} if anchor else {})
    where: dict[str, Any] = {"filterChain": {"filter": inner}}
    if port is not None:
        where["portNumber"] = port
    if listener:
        where["name"] = listener
    return {
        "applyTo": "HTTP_FILTER",
        "match": {"context": context, "listener": where, **match},
        "patch": {"operation": operation, "value": filter_ or value()},
    }


NETWORK = {"typedConfig": {"@type": "t/envoy.extensions.filters.network.wasm.v3.Wasm"}}


def classed(class_: str) -> dict[str, Any]:
    made = patch(operation="ADD", anchor="")
    made["patch"]["filterClass"] = class_
    return made


def envoyfilter(*patches: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "hello", "namespace": "shop"},
        "spec": {
            "workloadSelector": {"labels": {"app": "details"}},
            "configPatches": list(patches),
            **spec,
        },
    }


def only(found: Conversion) -> dict[str, Any]:
    (document,) = found.autowasms
    filter_: dict[str, Any] = document["spec"]["filter"]
    return filter_


PLAIN = {"source": {"object": {"url": URL}}, "sha256": DIGEST, "applyPorts": [9080]}


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        (value(), {}),
        (value(rootId="r"), {"rootID": "r"}),
        (value(vm={"vmId": "v"}), {"vmID": "v"}),
        (value(failOpen=True), {"failStrategy": "FAIL_OPEN"}),
        (value(failurePolicy="FAIL_RELOAD"), {"failStrategy": "FAIL_RELOAD"}),
        (value(allowOnHeadersStopIteration=True), {"allowOnHeadersStopIteration": True}),
        (value(configuration={"@type": "type.googleapis.com/google.protobuf.StringValue", "value": '{"a_b": 1}'}),
         {"pluginConfig": '{"a_b": 1}'}),
        (value(configuration={"@type": "t/google.protobuf.BytesValue", "value": "w7w="}), {"pluginConfig": "ü"}),
        (value(vm={"environmentVariables": {"keyValues": {"A_B": "c"}}}), {"env": [{"name": "A_B", "value": "c"}]}),
    ],
)  # fmt: skip
def test_field_of_the_plugin_becomes_the_field_of_the_filter(
    filter_: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = convert(envoyfilter(patch(filter_)))
    assert not found.losses
    assert only(found) == PLAIN | expected


def test_name_of_a_gateways_listener_is_its_port() -> None:
    found = convert(envoyfilter(patch(context="GATEWAY", port=None, listener="0.0.0.0_8443")))
    assert not found.losses
    assert only(found)["applyPorts"] == [8443]


def discovered(name: str, **match: Any) -> dict[str, Any]:
    """A patch that inserts a filter whose configuration the agent gets by its name."""
    return patch({"name": name, "configDiscovery": {"typeUrls": [WASM]}}, **match)


def extension(name: str, uri: str = URL, operation: str = "ADD", **config: Any) -> dict[str, Any]:
    remote = {"httpUri": {"uri": uri}, "sha256": config.pop("sha256", DIGEST)}
    filter_ = {**value(vm={"code": {"remote": remote}}, **config), "name": name}
    return {"applyTo": "EXTENSION_CONFIG", "patch": {"operation": operation, "value": filter_}}


def converted_together(*sources: dict[str, Any]) -> list[Conversion]:
    converters = [converter_of(source) for source in sources]
    return [
        converter(source, Batch(sources))
        for converter, source in zip(converters, sources, strict=True)
        if converter is not None
    ]


def named(name: str, *patches: dict[str, Any], namespace: str = "shop") -> dict[str, Any]:
    return {**envoyfilter(*patches), "metadata": {"name": name, "namespace": namespace}}


def test_extension_fetched_by_the_agent_becomes_one_filter() -> None:
    found = convert(envoyfilter(extension("a", rootId="r"), discovered("a")))
    assert not found.losses
    assert only(found) == PLAIN | {"rootID": "r"}


@pytest.mark.parametrize("namespace", ["shop", "istio-system"])
def test_extension_may_be_in_another_envoyfilter(namespace: str) -> None:
    filter_ = named("filter", discovered("a"))
    config = named("config", extension("a", rootId="r"), namespace=namespace)
    first, second = converted_together(filter_, config)
    assert not first.losses + second.losses
    assert only(first)["rootID"] == "r"
    assert [one.path for one in second.notes] == ["spec.configPatches[0]"]


def test_nearest_extension_of_a_name_counts() -> None:
    near = named("near", extension("a", rootId="near"))
    root = named("root", extension("a", rootId="root"), namespace="istio-system")
    other = named("other", extension("a", rootId="other"), namespace="elsewhere")
    found = converted_together(named("filter", discovered("a")), root, other, near)
    assert only(found[0])["rootID"] == "near"
    assert [one.path for one in found[2].losses] == ["spec.configPatches[0]"], (
        "no filter of its namespace uses it"
    )


def test_half_of_a_pair_is_lost_and_the_message_says_that_both_belong_together() -> None:
    for half in (discovered("a"), extension("a")):
        (loss,) = convert(envoyfilter(half)).losses
        assert "together with this one" in loss.problem


def test_losses_in_another_envoyfilter_name_it() -> None:
    config = named("config", extension("a", reloadConfig={"a": 1}))
    first, _ = converted_together(named("filter", discovered("a")), config)
    (loss,) = first.losses
    assert loss.path.startswith("EnvoyFilter config spec.configPatches[0].patch.value.")


def test_extension_that_is_not_added_has_no_effect_in_istio() -> None:
    found = convert(envoyfilter(extension("a", operation="MERGE")))
    assert [one.path for one in found.losses] == ["spec.configPatches[0].patch.operation"]


@pytest.mark.parametrize(
    ("uri", "sha256", "image"),
    [
        ("oci://r.example/a:v1", "nil", "r.example/a:v1"),
        ("oci://r.example/a:v1", DIGEST, f"r.example/a@sha256:{DIGEST}"),
        ("oci://r.example/a", "", "r.example/a"),
    ],
)
def test_agent_also_fetches_images(uri: str, sha256: str, image: str) -> None:
    variables = {
        "ISTIO_META_WASM_IMAGE_PULL_SECRET": "shop/login",
        "ISTIO_META_WASM_IMAGE_PULL_POLICY": "Always",
        "A": "b",
    }
    config = extension("a", uri, sha256=sha256)
    vm = config["patch"]["value"]["typedConfig"]["value"]["config"]["vmConfig"]
    vm["environmentVariables"] = {"keyValues": variables}
    found = convert(envoyfilter(config, discovered("a", port=None)))
    assert not found.losses
    assert found.autowasms[0]["spec"]["secret"] == "login"
    assert only(found) == {
        "source": {"registry": {"image": image}},
        "pullPolicy": "Always",
        "env": [{"name": "A", "value": "b"}],
    }


def test_envoyfilter_without_wasm_is_not_converted() -> None:
    lua = {
        "name": "envoy.lua",
        "typedConfig": {"@type": "t/envoy.extensions.filters.http.lua.v3.Lua"},
    }
    assert converter_of(envoyfilter(patch(lua))) is None
    assert converter_of(envoyfilter()) is None


def test_annotation_for_adoption_is_suggested_where_the_name_stays() -> None:
    (same,) = convert(envoyfilter(patch())).notes
    (other,) = convert(envoyfilter(patch(context="ANY"))).notes
    assert "wasm.tcm.io/adopt" in same.problem
    assert "wasm.tcm.io/adopt" not in other.problem


def test_both_names_of_a_field_are_read() -> None:
    snake = {
        "name": "any",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "root_id": "r",
                "vm_config": {
                    "code": {"remote": {"http_uri": {"uri": URL}, "sha256": DIGEST}},
                    "environment_variables": {"key_values": {"a_b": "c"}},
                },
            },
        },
    }
    found = convert(envoyfilter(patch(snake)))
    assert not found.losses
    assert only(found) == PLAIN | {"rootID": "r", "env": [{"name": "a_b", "value": "c"}]}


def test_patches_that_differ_in_the_port_are_one_autowasm() -> None:
    found = convert(envoyfilter(patch(port=80), patch(port=9080)))
    assert only(found)["applyPorts"] == [80, 9080]
    several = convert(envoyfilter(patch(port=80), patch(value(rootId="b"), port=80)))
    assert [one["metadata"]["name"] for one in several.autowasms] == ["hello-1", "hello-2"]
    contexts = convert(envoyfilter(patch(context="ANY", port=None)))
    assert {one["spec"]["filter"].get("context") for one in contexts.autowasms} == {
        None,
        "SIDECAR_OUTBOUND",
        "GATEWAY",
    }


@pytest.mark.parametrize(
    ("changed", "path", "is_converted"),
    [
        (patch(operation="INSERT_FIRST", anchor=""), "", True),
        (patch(anchor="envoy.filters.http.jwt_authn"), "spec.configPatches[0].patch.operation", True),
        (patch(operation="MERGE"), "spec.configPatches[0].patch.operation", False),
        (patch(proxy={"proxyVersion": ".*"}), "spec.configPatches[0].match.proxy", True),
        (patch(value(vm={"code": {"local": {"filename": "/a"}}})),
         "spec.configPatches[0].patch.value.typedConfig.value.config.vmConfig.code", False),
        (patch(value(vm={"code": {"remote": {"httpUri": {"uri": "host:8080/a"}}}})),
         "spec.configPatches[0].patch.value.typedConfig.value.config.vmConfig.code.remote.httpUri.uri", False),
        (patch(value(configuration={"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"a": 1}})),
         "spec.configPatches[0].patch.value.typedConfig.value.config.configuration", True),
        (patch(value(vm={"environmentVariables": {"hostEnvKeys": ["A"]}})),
         "spec.configPatches[0].patch.value.typedConfig.value.config.vmConfig.environmentVariables.hostEnvKeys", True),
        (patch(value(capabilityRestrictionConfig={"a": 1})),
         "spec.configPatches[0].patch.value.typedConfig.value.config.capabilityRestrictionConfig", True),
        ({"applyTo": "NETWORK_FILTER", "patch": {"operation": "MERGE", "value": NETWORK}}, "spec.configPatches[0]", False),
        (patch({**value(), "disabled": True}), "spec.configPatches[0].patch.value.disabled", True),
        (patch(value(vm={"allowPrecompiled": True})),
         "spec.configPatches[0].patch.value.typedConfig.value.config.vmConfig.allowPrecompiled", True),
        (patch(value(vm={"allowPrecompiled": False})), "", True),
        (patch(value(configuration="text")), "spec.configPatches[0].patch.value.typedConfig.value.config.configuration", True),
        (classed("AUTHZ"), "spec.configPatches[0].patch.filterClass", True),
        (patch(listener="x"), "spec.configPatches[0].match.listener.name", True),
        (patch(listener="virtualInbound"), "", True),
        (patch(anchor="envoy.router"), "", True),
    ],
)  # fmt: skip
def test_fields_without_an_equivalent_in_autowasm_are_named(
    changed: dict[str, Any], path: str, is_converted: bool
) -> None:
    found = convert(envoyfilter(changed))
    assert [one.path for one in found.losses] == ([path] if path else [])
    assert bool(found.autowasms) is is_converted
    if changed["patch"]["operation"] == "INSERT_FIRST":
        assert only(found)["position"] == "First"


def test_pull_secret_has_no_effect_for_a_url() -> None:
    variables = {"keyValues": {"ISTIO_META_WASM_IMAGE_PULL_SECRET": "a"}}
    found = convert(envoyfilter(patch(value(vm={"environmentVariables": variables}))))
    assert "secret" not in found.autowasms[0]["spec"]
    assert [one.path.endswith("keyValues") for one in found.notes] == [True, False]


def test_own_envoyfilter_gives_the_filter_that_it_was_made_from() -> None:
    made = autowasm(
        applyPorts=[80, 9080],
        pluginConfig="text",
        rootID="r",
        env=[{"name": "A", "value": "b"}],
        failStrategy="FAIL_OPEN",
        position="First",
        allowOnHeadersStopIteration=True,
        priority=3,
    )
    text = json.dumps(render(made, record(), EnvoyFetch()))
    source = json.loads(text.replace("wasmer.istio-system:8081/", "https://h.example/"))
    assert converter_of(source) is None, "it is not converted back by mistake"
    del source["metadata"]["labels"]
    found = convert(source)
    filters = [one["spec"]["filter"] for one in found.autowasms]
    (filter_,) = (one for one in filters if "source" in one)
    assert filter_["applyPorts"] == [80, 9080]
    assert filter_["position"] == "First"
    assert filter_["allowOnHeadersStopIteration"] is True
    assert (filter_["rootID"], filter_["pluginConfig"], filter_["priority"]) == ("r", "text", 3)
    assert (filter_["failStrategy"], filter_["env"]) == ("FAIL_OPEN", [{"name": "A", "value": "b"}])


def policy(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyExtensionPolicy",
        "metadata": {"name": "eg"},
        "spec": {"targetRefs": [{"kind": "Gateway", "name": "edge"}], **spec},
    }


def test_extensions_of_a_policy_become_autowasms_in_their_order() -> None:
    image = {"url": "r.example/a:v1", "sha256": DIGEST, "pullSecretRef": {"name": "login"}}
    extensions = [
        {"name": "a", "rootID": "r", "code": {"type": "Image", "image": image, "pullPolicy": "Always"}, "config": {"k": [1]}},
        {"name": "b", "failOpen": True, "code": {"type": "HTTP", "http": {"url": URL, "sha256": DIGEST}}},
    ]  # fmt: skip
    found = convert(policy(wasm=extensions))
    assert not found.losses
    first, second = (one["spec"] for one in found.autowasms)
    assert first["secret"] == "login"
    assert first["selector"] == second["selector"] == {"matchLabels": {LABEL: "edge"}}
    assert first["filter"] == {
        "source": {"registry": {"image": f"r.example/a@sha256:{DIGEST}"}},
        "pullPolicy": "Always",
        "rootID": "r",
        "pluginConfig": {"k": [1]},
        "priority": 0,
        "context": "GATEWAY",
    }
    assert second["filter"] == {
        "source": {"object": {"url": URL}},
        "sha256": DIGEST,
        "failStrategy": "FAIL_OPEN",
        "priority": 1,
        "context": "GATEWAY",
    }


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"targetRefs": [{"kind": "HTTPRoute", "name": "a"}]}, "spec.targetRefs"),
        ({"targetRefs": [{"kind": "Gateway", "name": "a", "sectionName": "http"}]}, "spec.targetRefs"),
        ({"extProc": [{"a": 1}]}, "spec.extProc"),
        ({"wasm": [{"code": {"http": {"url": URL, "tls": {"a": 1}}}}]}, "spec.wasm[0].code.http.tls"),
        ({"wasm": [{"code": {"http": {"url": URL}}, "env": {"hostKeys": ["A"]}}]}, "spec.wasm[0].env.hostKeys"),
        ({"wasm": [{"code": {}}]}, "spec.wasm[0].code"),
        ({"wasm": [{"code": {"image": {"url": "a", "pullSecretRef": {"name": "b", "namespace": "c"}}}}]},
         "spec.wasm[0].code.image.pullSecretRef.namespace"),
    ],
)  # fmt: skip
def test_lost_fields_of_a_policy_are_named(spec: dict[str, Any], path: str) -> None:
    found = convert(policy(**spec))
    assert [one.path for one in found.losses] == [path]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"k": 1}, {"k": 1}),
        ("text", '"text"'),
        ([1, "ü"], '[1, "ü"]'),
        (True, "true"),
        (None, None),
    ],
)
def test_configuration_of_a_policy_reaches_the_filter_as_json(config: Any, expected: Any) -> None:
    extensions = [{"code": {"http": {"url": URL}}, "config": config}]
    assert only(convert(policy(wasm=extensions))).get("pluginConfig") == expected
