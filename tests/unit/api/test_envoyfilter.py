"""render(): the golden test against the reference sample, and every optional field."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from autowasm.api import envoyfilter, validation
from autowasm.api.envoyfilter import REFERENCED_SERVICES, record_of, render, resend_count_of
from autowasm.api.patches import FILTER, copies, filters_of
from autowasm.api.record import Record
from autowasm.digest import Sha256Hex
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import autowasm, document, record, sample

SHA256 = Sha256Hex("750d63889653e7117fcbc0831f10f0e1d3f7ec0c82fe5787b71d08a783e3393f")
IMAGE = "ccr.ccs.tencentyun.com/xxx/wasm-add-header:v0.3"
MISSING = object()


def golden_record() -> Record:
    return record(image=IMAGE, sha256=SHA256)


def golden(document_: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return render(
        validation.parse(document_ or sample("autowasm-registry.yaml")),
        golden_record(),
        EnvoyFetch(),
    )


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, in the sample, rendered), where they differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from differences(old.get(name, MISSING), new.get(name, MISSING), f"{path}.{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif type(old) is not type(new) or old != new:
        yield path, old, new


def config_of(rendered: dict[str, Any], patch: int = 0) -> dict[str, Any]:
    """Of the filter that the first, second, … patch inserts."""
    carrying = [one for one in filters_of(rendered) if one["name"] == FILTER]
    config: dict[str, Any] = carrying[patch]["typedConfig"]["value"]["config"]
    return config


def rendered(**fields: Any) -> dict[str, Any]:
    return render(autowasm(**fields), record(), EnvoyFetch())


def test_differs_from_the_sample_exactly_where_the_design_says() -> None:
    vm = ".spec.configPatches[0].patch.value.typedConfig.value.config.vmConfig"
    rendered = golden()
    # The reference's patch is the first; the other one is for the inner listener of a sidecar with a tunnel (ADR 27).
    del rendered["spec"]["configPatches"][1:]
    assert list(differences(sample("envoyfilter.yaml"), rendered)) == [
        (
            ".metadata.annotations",
            MISSING,
            {
                "wasm.tcm.io/record": '{"abi":"0.2.1",'
                '"image":"ccr.ccs.tencentyun.com/xxx/wasm-add-header@sha256:' + "1" * 64 + '",'
                f'"sha256":"{SHA256}","size":1234,"source":"registry:{IMAGE}"}}'
            },
        ),
        (".metadata.labels", MISSING, {"app.kubernetes.io/managed-by": "wasmer"}),
        (f"{vm}.code.remote.httpUri.timeout", "600s", "30s"),
        (
            f"{vm}.code.remote.retryPolicy",
            MISSING,
            {"numRetries": 10, "retryBackOff": {"baseInterval": "1s", "maxInterval": "5s"}},
        ),
        (f"{vm}.vmId", "test", "test-750d63889653"),
    ]


def test_owner_is_named_once_the_autowasm_has_a_uid() -> None:
    document_ = sample("autowasm-registry.yaml")
    document_["metadata"]["uid"] = "u-1"
    assert list(differences(golden(), golden(document_))) == [
        (
            ".metadata.ownerReferences",
            MISSING,
            [
                {
                    "apiVersion": "wasm.tcm.io/v1alpha1",
                    "controller": True,
                    "kind": "AutoWasm",
                    "name": "test",
                    "uid": "u-1",
                }
            ],
        )
    ]


def test_object_source_differs_only_in_the_record() -> None:
    of_object = Record(
        source="object:https://aaaa.com/bbb",
        sha256=SHA256,
        size=1234,
        abi="0.2.1",
        url="https://aaaa.com/bbb",
        etag='"x"',
        last_modified="Mon",
    )
    result = render(validation.parse(sample("autowasm-object.yaml")), of_object, EnvoyFetch())
    assert [path for path, *_ in differences(golden(), result)] == [
        ".metadata.annotations.wasm.tcm.io/record"
    ]
    assert record_of(result) == of_object


@pytest.mark.parametrize("label", ["canary", None])
def test_revision_label_is_copied_and_no_other(label: str | None) -> None:
    labels = {"team": "a"} | ({"istio.io/rev": label} if label else {})
    assert rendered(metadata={"labels": labels})["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "wasmer",
        **({"istio.io/rev": label} if label else {}),
    }


def matches(**fields: Any) -> list[tuple[str, str, int | None, int | None]]:
    """(operation, listener's name, its port, the chain's port) of each patch."""
    found = []
    for each in rendered(**fields)["spec"]["configPatches"]:
        listener = each["match"]["listener"]
        chain_port = listener["filterChain"].get("destinationPort")
        operation = each["patch"]["operation"]
        found.append((operation, listener.get("name", ""), listener.get("portNumber"), chain_port))
    return found


def test_each_port_has_the_patch_of_the_reference_and_one_for_the_inner_listener() -> None:
    assert matches(applyPorts=[9080, 80]) == [
        ("INSERT_BEFORE", "", 9080, None),
        ("INSERT_BEFORE", "", 80, None),
        ("INSERT_BEFORE", "main_internal", None, 9080),
        ("INSERT_BEFORE", "main_internal", None, 80),
    ]
    values = list(filters_of(rendered(applyPorts=[9080, 80])))
    assert values == [values[0]] * 4


def test_without_ports_one_patch_matches_every_port_and_the_tunnel_is_kept_clear() -> None:
    assert matches() == [
        ("INSERT_FIRST", "connect_terminate", None, None),
        ("INSERT_BEFORE", "", None, None),
        ("REPLACE", "connect_terminate", None, None),
        ("REPLACE", "connect_terminate", None, None),
        ("REMOVE", "connect_terminate", None, None),
    ]


def test_filter_that_is_first_is_inserted_without_an_anchor_which_another_listener_may_lack() -> (
    None
):
    assert matches(position="First", applyPorts=[9080]) == [
        ("INSERT_FIRST", "", 9080, None),
        ("INSERT_FIRST", "main_internal", None, 9080),
    ]
    assert matches(position="First", context="GATEWAY") == [("INSERT_FIRST", "", None, None)]
    chains = [
        each["match"]["listener"]["filterChain"]["filter"]
        for each in rendered(position="First", applyPorts=[9080])["spec"]["configPatches"]
    ]
    assert chains == [{"name": "envoy.filters.network.http_connection_manager"}] * 2


@pytest.mark.parametrize("context", ["SIDECAR_OUTBOUND", "GATEWAY"])
def test_other_contexts_have_the_patches_of_the_reference_only(context: str) -> None:
    assert matches(context=context) == [("INSERT_BEFORE", "", None, None)]
    assert matches(context=context, applyPorts=[1, 2]) == [
        ("INSERT_BEFORE", "", 1, None),
        ("INSERT_BEFORE", "", 2, None),
    ]


@pytest.mark.parametrize("context", ["SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY"])
@pytest.mark.parametrize("ports", [None, [1], [1, 2], [1, 15008]])
def test_copies_of_the_configuration_are_counted_as_they_are_rendered(
    context: str, ports: list[int] | None
) -> None:
    fields: dict[str, Any] = {"context": context} | ({"applyPorts": ports} if ports else {})
    carrying = [one for one in filters_of(rendered(**fields)) if one["name"] == FILTER]
    assert len(carrying) == copies(autowasm(**fields).spec.filter)


@pytest.mark.parametrize(
    "fields", [{}, {"applyPorts": [1, 15008]}, {"applyPorts": [1]}, {"position": "First"}]
)
def test_record_and_count_of_healings_are_read_back_from_every_shape(
    fields: dict[str, Any],
) -> None:
    result = render(autowasm(**fields), record(), EnvoyFetch(), resend=3)
    assert record_of(result) == record()
    assert resend_count_of(result, "a" * 64) == 3
    assert resend_count_of(result, "b" * 64) == 0


def referenced(settings: EnvoyFetch, context: str = "GATEWAY") -> str | None:
    found = render(autowasm(context=context), record(), settings)["metadata"]["annotations"]
    value: str | None = found.get(REFERENCED_SERVICES)
    return value


def test_gateways_filter_names_the_service_that_it_fetches_from() -> None:
    assert referenced(EnvoyFetch()) == "istio-system/wasmer.istio-system.svc.cluster.local"
    elsewhere = EnvoyFetch(service_name="w", service_namespace="ns", cluster_domain="x.y")
    assert referenced(elsewhere) == "ns/w.ns.svc.x.y"
    assert referenced(EnvoyFetch(cluster_override="outbound|80|v1|blobs.example.com")) == (
        "blobs.example.com"
    )
    assert referenced(EnvoyFetch(cluster_override="wasmer")) is None
    assert referenced(EnvoyFetch(), "SIDECAR_INBOUND") is None
    assert referenced(EnvoyFetch(), "SIDECAR_OUTBOUND") is None


def test_name_is_the_objects_and_absent_root_id_is_left_out() -> None:
    config = config_of(rendered(name="my-filter"))
    assert config["name"] == "my-filter"
    assert "rootId" not in config
    assert config_of(rendered(rootID="root"))["rootId"] == "root"


def test_generated_vm_id_is_stable_and_differs_by_object_and_module() -> None:
    def vm_id(sha256: str = "a" * 64, **fields: Any) -> str:
        result = render(autowasm(**fields), record(sha256=sha256), EnvoyFetch())
        identity: str = config_of(result)["vmConfig"]["vmId"]
        return identity

    assert vm_id() == vm_id(generation=2) == "default.test-aaaaaaaaaaaa"
    assert vm_id(sha256="b" * 64) == "default.test-bbbbbbbbbbbb"
    assert vm_id(namespace="other") == "other.test-aaaaaaaaaaaa"
    assert vm_id(vmID="mine") == "mine-aaaaaaaaaaaa"


def test_vm_id_differs_wherever_envoy_must_not_share_a_vm() -> None:
    """Found on Envoy 1.36: a running VM keeps the environment and the failure policy with which it was started."""

    def vm_id(**fields: Any) -> str:
        identity: str = config_of(rendered(vmID="mine", **fields))["vmConfig"]["vmId"]
        return identity

    a1, a2 = {"name": "A", "value": "1"}, {"name": "A", "value": "2"}
    b1 = {"name": "B", "value": "1"}
    ids = {
        vm_id(),
        vm_id(env=[a1]),
        vm_id(env=[a2]),
        vm_id(env=[b1]),
        vm_id(env=[a1, b1]),
        vm_id(failStrategy="FAIL_OPEN"),
        vm_id(failStrategy="FAIL_RELOAD"),
        vm_id(failStrategy="FAIL_OPEN", env=[a1]),
        vm_id(allowOnHeadersStopIteration=True),
    }
    assert len(ids) == 9
    assert all(each.startswith("mine-aaaaaaaaaaaa") for each in ids)
    assert vm_id(env=[a1, b1]) == vm_id(env=[b1, a1])


@pytest.mark.parametrize(
    "fields",
    [
        {"env": []},
        {"failStrategy": "FAIL_CLOSE"},
        {"allowOnHeadersStopIteration": False},
        {"position": "First"},
        {"rootID": "root", "pluginConfig": {"a": 1}, "priority": 3, "applyPorts": [1]},
    ],
)
def test_vm_id_of_objects_without_env_and_fail_strategy_stays_as_earlier_versions_wrote_it(
    fields: dict[str, Any],
) -> None:
    assert config_of(rendered(**fields))["vmConfig"]["vmId"] == "default.test-aaaaaaaaaaaa"


@pytest.mark.parametrize(
    ("fields", "added"),
    [
        ({}, {}),
        ({"failStrategy": "FAIL_CLOSE"}, {}),
        ({"failStrategy": "FAIL_OPEN"}, {"failOpen": True}),
        ({"failStrategy": "FAIL_RELOAD"}, {"failurePolicy": "FAIL_RELOAD"}),
        (
            {"pluginConfig": {"b": [1, 2.5, None, True], "a": {}}},
            {
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": '{"b":[1,2.5,null,true],"a":{}}',
                }
            },
        ),
        (
            {"pluginConfig": {}},
            {
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": "{}",
                }
            },
        ),
        (
            {"pluginConfig": "text"},
            {
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": "text",
                }
            },
        ),
    ],
)
def test_optional_field_adds_exactly_its_own(fields: dict[str, Any], added: dict[str, Any]) -> None:
    config = config_of(rendered(**fields))
    assert config.keys() - {"name", "vmConfig"} == added.keys()
    assert {name: config[name] for name in added} == added


def test_environment_is_key_values_of_the_vm() -> None:
    env = [{"name": "B", "value": "2"}, {"name": "A"}]
    vm = config_of(rendered(env=env))["vmConfig"]
    assert vm["environmentVariables"] == {"keyValues": {"A": "", "B": "2"}}
    assert "environmentVariables" not in config_of(rendered(env=[]))["vmConfig"]


@pytest.mark.parametrize("priority", [-10, 0, 10])
def test_priority_is_rendered_only_when_set(priority: int) -> None:
    assert rendered(priority=priority)["spec"]["priority"] == priority
    assert "priority" not in rendered()["spec"]


@pytest.mark.parametrize("context", ["SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY"])
def test_context_goes_into_every_patch(context: str) -> None:
    patches = rendered(context=context, applyPorts=[1, 2])["spec"]["configPatches"]
    assert {patch["match"]["context"] for patch in patches} == {context}


def test_empty_selector_is_left_out() -> None:
    assert "workloadSelector" not in rendered(spec={"selector": {"matchLabels": {}}})["spec"]


def test_fetch_settings_reach_envoy() -> None:
    settings = EnvoyFetch(
        cluster_override="wasmer", authority_override="host:1", timeout=2.5, retries=3
    )
    remote = config_of(render(autowasm(), record(), settings))["vmConfig"]["code"]["remote"]
    assert remote["httpUri"] == {
        "cluster": "wasmer",
        "timeout": "2.5s",
        "uri": f"host:1/wasm/{'a' * 64}",
    }
    assert remote["retryPolicy"]["numRetries"] == 3
    assert remote["sha256"] == "a" * 64


@pytest.mark.parametrize(
    ("timeout", "text"), [(30.0, "30s"), (0.25, "0.25s"), (3_600_000.0, "3600000s")]
)
def test_timeout_is_a_duration_that_protobuf_reads(timeout: float, text: str) -> None:
    config = config_of(render(autowasm(), record(), EnvoyFetch(timeout=timeout)))
    assert config["vmConfig"]["code"]["remote"]["httpUri"]["timeout"] == text


EVERYTHING = {
    "rootID": "root",
    "vmID": "vm",
    "applyPorts": [1, 2],
    "pluginConfig": '{"z": 1}',
    "env": [{"name": "Z", "value": "1"}, {"name": "A", "value": "2"}],
    "failStrategy": "FAIL_RELOAD",
    "context": "GATEWAY",
    "position": "First",
    "allowOnHeadersStopIteration": True,
    "priority": 3,
}


def reversed_everywhere(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: reversed_everywhere(value[name]) for name in reversed(list(value))}
    return [reversed_everywhere(item) for item in value] if isinstance(value, list) else value


def test_order_of_keys_does_not_change_the_bytes() -> None:
    one = document(
        metadata={"uid": "u", "labels": {"istio.io/rev": "r", "a": "b"}},
        spec={"selector": {"matchLabels": {"b": "1", "a": "2"}}},
        **EVERYTHING,
    )
    other = reversed_everywhere(one)
    assert list(one) != list(other)
    texts = {
        json.dumps(render(validation.parse(each), record(), EnvoyFetch())) for each in (one, other)
    }
    assert len(texts) == 1
    assert json.dumps(json.loads(texts.pop()), sort_keys=True) == json.dumps(
        render(validation.parse(one), record(), EnvoyFetch())
    )


def names(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(names, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    return set(value).union(*map(names, value.values())) if value else set()


def test_every_field_name_is_known_to_istio_or_envoy() -> None:
    """An unknown one inside a TypedStruct is ignored in silence. Sources: EnvoyFilter, wasm.v3, core.v3 protos."""
    spec = rendered(**{**EVERYTHING, "pluginConfig": "text"})["spec"]
    config = spec["configPatches"][0]["patch"]["value"]["typedConfig"]["value"]["config"]
    variables = config["vmConfig"]["environmentVariables"].pop("keyValues")
    assert set(variables) == {"A", "Z"}
    assert names(config) | {"failOpen"} == {
        "configuration", "@type", "value", "failOpen", "failurePolicy", "name", "rootId", "vmConfig",
        "code", "remote", "httpUri", "cluster", "timeout", "uri", "retryPolicy", "numRetries",
        "retryBackOff", "baseInterval", "maxInterval", "sha256", "environmentVariables", "runtime", "vmId",
        "allowOnHeadersStopIteration",
    }  # fmt: skip
    assert set(spec) == {"configPatches", "priority", "workloadSelector"}


@pytest.mark.parametrize(
    "annotations",
    [
        None,
        {},
        {"wasm.tcm.io/record": "{"},
        {"wasm.tcm.io/record": 3},
        {"wasm.tcm.io/record": "[]"},
        {"wasm.tcm.io/record": '{"source":"x","sha256":"no","size":1,"abi":"a"}'},
        {"wasm.tcm.io/record": '{"source":"x","sha256":"' + "a" * 64 + '","size":-1,"abi":"a"}'},
        {"wasm.tcm.io/record": "\ud800"},
    ],
)
def test_annotation_that_cannot_be_read_is_no_record(annotations: Any) -> None:
    assert envoyfilter.record_of({"metadata": {"annotations": annotations}}) is None
    assert envoyfilter.record_of({}) is None
