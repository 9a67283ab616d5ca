"""The EnvoyFilter with two variants: what is in it, for whom, and what is read back."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest

from autowasm.api.envoyfilter import (
    Variant,
    digests_of,
    record_of,
    records_of,
    render,
    resend_count_of,
    variant_of,
)
from autowasm.api.patches import FILTER, filters_of
from autowasm.api.record import ANNOTATION, STABLE_ANNOTATION
from autowasm.api.staged import Variants, capacity, filter_name, variants_of
from autowasm.api.staged import render as render_staged
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import autowasm, record

FETCH = EnvoyFetch()
NAME = "autowasm/default.test"
B = {"NAME": "details-b", "NAMESPACE": "default"}
C = {"NAME": "details-c", "NAMESPACE": "default"}
OLD, NEW = record(sha256="a" * 64), record(sha256="b" * 64, manifest="2" * 64)


def variant(sha256: str = "a" * 64, resend: int = 0, **fields: Any) -> Variant:
    return variant_of(autowasm(**fields), OLD if sha256[0] == "a" else NEW, resend=resend)


def staged(
    stable: Variant | None, target: Variant | None, proxies: Any = (B,), **fields: Any
) -> dict[str, Any]:
    return render_staged(autowasm(**fields), FETCH, stable=stable, target=target, proxies=proxies)


def shown(envoyfilter: Mapping[str, Any]) -> list[str]:
    """Each patch in a line: operation, listener and port, proxy, and the inserted plugin or filter."""
    found = []
    for each in envoyfilter["spec"]["configPatches"]:
        match, patch = each["match"], each["patch"]
        listener = match["listener"]
        port = listener.get("portNumber") or listener["filterChain"].get("destinationPort")
        proxy = match.get("proxy", {}).get("metadata", {})
        value = patch.get("value") or {}
        config = value.get("typedConfig", {}).get("value", {}).get("config", {})
        module = config.get("vmConfig", {}).get("code", {}).get("remote", {}).get("sha256", "-")
        anchored = listener["filterChain"]["filter"]["subFilter"]["name"]
        found.append(
            f"{patch['operation']} {anchored} {listener.get('name', '*')}:{port or '*'} "
            f"{proxy.get('NAME', 'all')} {module[0]}"
        )
    return found


ROUTER = "envoy.filters.http.router"
ANCHOR = f"INSERT_FIRST {ROUTER} connect_terminate:* all -"
CLEARED = [
    f"REPLACE {NAME} connect_terminate:* all -",
    f"REPLACE {ROUTER} connect_terminate:* all -",
    "REMOVE autowasm.removed connect_terminate:* all -",
]

WRITTEN_BEFORE = {
    "882610bec4952d06a1fd7722693bb4a2fbba948e011a83328ced0377180ccf28": {},
    "91dc8a09f6746566c943ce53618ddbce5b797433ac2332a3182612b666407ff7": {
        "applyPorts": [9080, 15008]
    },
    "6662b11262c4594628c2cf2512e295bf258c3fd7af5e79a4881bf36d4364d4b5": {
        "rootID": "root",
        "vmID": "vm",
        "applyPorts": [1, 2],
        "pluginConfig": '{"z": 1}',
        "env": [{"name": "Z", "value": "1"}, {"name": "A", "value": "2"}],
        "failStrategy": "FAIL_RELOAD",
        "context": "GATEWAY",
        "priority": 3,
    },
    "e47d57c2d76c8c5e56f6a7ddd4ba0d9c69c3eaeef8e5afe5bdfc30d08c97051a": {
        "failStrategy": "FAIL_OPEN",
        "pluginConfig": {"b": [1, 2.5], "a": None},
        "context": "SIDECAR_OUTBOUND",
    },
}
"""sha256 of the EnvoyFilter that the version before staged rollouts rendered."""


@pytest.mark.parametrize("written", WRITTEN_BEFORE)
def test_without_a_rollout_the_envoyfilter_has_the_bytes_of_earlier_versions(written: str) -> None:
    document = render(autowasm(**WRITTEN_BEFORE[written]), record(), FETCH, resend=2)
    assert hashlib.sha256(json.dumps(document).encode()).hexdigest() == written


def test_stable_is_for_all_and_each_named_proxy_gets_the_target_after_it() -> None:
    document = staged(variant(), variant("b" * 64), (B, C))
    assert shown(document) == [
        ANCHOR,
        f"INSERT_BEFORE {ROUTER} *:* all a",
        f"REPLACE {NAME} *:* details-b b",
        f"REPLACE {NAME} *:* details-c b",
        *CLEARED,
    ]
    metadata = document["spec"]["configPatches"][2]["match"]["proxy"]
    assert metadata == {"metadata": {"NAME": "details-b", "NAMESPACE": "default"}}


def test_ports_do_not_multiply_the_patches_of_a_proxy() -> None:
    fields = {"applyPorts": [9080, 80]}
    document = staged(variant(**fields), variant("b" * 64, **fields), (B, C))
    assert shown(document) == [
        f"INSERT_BEFORE {ROUTER} *:9080 all a",
        f"INSERT_BEFORE {ROUTER} *:80 all a",
        f"INSERT_BEFORE {ROUTER} main_internal:9080 all a",
        f"INSERT_BEFORE {ROUTER} main_internal:80 all a",
        f"REPLACE {NAME} *:* details-b b",
        f"REPLACE {NAME} *:* details-c b",
    ]


def test_with_other_ports_the_filter_is_taken_out_and_inserted_where_it_is_for() -> None:
    document = staged(variant(applyPorts=[9080]), variant("b" * 64), (B,))
    assert shown(document) == [
        ANCHOR,
        f"INSERT_BEFORE {ROUTER} *:9080 all a",
        f"INSERT_BEFORE {ROUTER} main_internal:9080 all a",
        f"REPLACE {NAME} *:* details-b -",
        "REMOVE autowasm.removed *:* details-b -",
        f"INSERT_BEFORE {ROUTER} *:* details-b b",
        *CLEARED,
    ]


def test_first_introduction_inserts_in_the_named_proxies_only() -> None:
    ports = {"applyPorts": [9080]}
    assert shown(staged(None, variant("b" * 64, **ports))) == [
        f"INSERT_BEFORE {ROUTER} *:9080 details-b b",
        f"INSERT_BEFORE {ROUTER} main_internal:9080 details-b b",
    ]
    assert shown(staged(None, variant("b" * 64, **ports), ())) == []
    assert shown(staged(None, None)) == []


def test_last_step_keeps_the_stable_filter_to_go_back_to() -> None:
    assert shown(staged(variant(), variant("b" * 64), None)) == [
        ANCHOR,
        f"INSERT_BEFORE {ROUTER} *:* all a",
        f"REPLACE {NAME} *:* all b",
        *CLEARED,
    ]


def test_without_target_or_proxies_only_the_stable_filter_is_there() -> None:
    alone = staged(variant(), None)
    assert shown(alone) == [ANCHOR, f"INSERT_BEFORE {ROUTER} *:* all a", *CLEARED]
    assert alone == staged(variant(), variant("b" * 64), ())


@pytest.mark.parametrize("context", ["SIDECAR_OUTBOUND", "GATEWAY"])
def test_other_contexts_have_no_tunnel(context: str) -> None:
    fields = {"context": context}
    assert shown(staged(variant(**fields), variant("b" * 64, **fields))) == [
        f"INSERT_BEFORE {ROUTER} *:* all a",
        f"REPLACE {NAME} *:* details-b b",
    ]


def test_filter_has_the_objects_own_name_and_the_plugin_the_variants_digest() -> None:
    old, new = variant(), variant("b" * 64)
    filters = [one for one in filters_of(staged(old, new)) if one["name"] == NAME]
    plugins = [one["typedConfig"]["value"]["config"]["name"] for one in filters]
    assert plugins == [f"test-{old.digest}", f"test-{new.digest}"]
    assert filter_name(autowasm()) == NAME
    assert FILTER not in {one["name"] for one in filters_of(staged(old, new))}


def test_priority_selector_owner_and_revision_are_the_objects() -> None:
    fields: dict[str, Any] = {"priority": 7, "metadata": {"uid": "u", "labels": {"istio.io/rev": "r"}}}  # fmt: skip
    document, plain = staged(variant(), None, **fields), render(autowasm(**fields), OLD, FETCH)
    assert document["spec"]["priority"] == 7
    assert document["spec"]["workloadSelector"] == plain["spec"]["workloadSelector"]
    assert document["metadata"] == plain["metadata"]


def test_records_and_modules_of_both_variants_are_read_back() -> None:
    document = staged(variant(), variant("b" * 64))
    assert digests_of(document) == ("a" * 64, "b" * 64)
    assert records_of(document) == (NEW, OLD)
    assert record_of(document) == NEW, "that of the spec's source"
    alone = staged(variant(), None)
    assert records_of(alone) == (OLD,)
    assert STABLE_ANNOTATION not in alone["metadata"]["annotations"]


def test_another_configuration_of_one_module_has_one_record() -> None:
    document = staged(variant(), variant(pluginConfig="x"))
    assert digests_of(document) == ("a" * 64,)
    assert records_of(document) == (OLD,)


@pytest.mark.parametrize("name", [ANNOTATION, STABLE_ANNOTATION])
@pytest.mark.parametrize("text", [None, "{}", "c"])
def test_records_that_contradict_the_spec_are_not_used(name: str, text: str | None) -> None:
    document = staged(variant(), variant("b" * 64))
    annotations = document["metadata"]["annotations"]
    if text is None:
        del annotations[name]
    else:
        annotations[name] = text if text == "{}" else annotations[name].replace("a" * 64, "c" * 64)
        annotations[name] = annotations[name].replace("b" * 64, "c" * 64)
    assert records_of(document) == ()
    assert record_of(document) is None


def test_resends_of_both_modules_are_read_back() -> None:
    document = staged(variant(resend=2), variant("b" * 64, resend=1))
    counts = [resend_count_of(document, character * 64) for character in "abc"]
    assert counts == [2, 1, 0]


def test_stable_variant_of_an_edited_spec_is_read_back_and_rendered_with_the_current_settings() -> (
    None
):
    old = variant(pluginConfig={"a": 1}, rootID="r", env=[{"name": "E"}], failStrategy="FAIL_OPEN")
    first = staged(old, variant("b" * 64))
    read = variants_of(first)
    moved = EnvoyFetch(cluster_override="wasmer", authority_override="host:1", retries=3)
    again = render_staged(autowasm(), moved, stable=read.base, target=read.override, proxies=(B, C))
    assert variants_of(again) == read == Variants(old, variant("b" * 64))
    text = json.dumps(again)
    assert "host:1/wasm/" in text
    assert FETCH.authority not in text


def test_variant_of_a_filter_that_was_written_without_a_rollout_is_its_stable_one() -> None:
    for fields in ({}, {"applyPorts": [9080, 80]}, {"context": "GATEWAY", "applyPorts": [80]}):
        found = variants_of(render(autowasm(**fields), OLD, FETCH, resend=1))
        assert found == Variants(variant(resend=1, **fields))
        assert found.find(variant(**fields).digest) == found.base
        assert found.find("0" * 16) is None


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"spec": None},
        {"spec": {"configPatches": [3, {"patch": 1}, {"patch": {"value": {}}, "match": 7}]}},
    ],
)
def test_foreign_filters_have_no_variants(broken: dict[str, Any]) -> None:
    assert variants_of(broken) == Variants()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("vmConfig", "vmId"), 3),
        (("vmConfig", "code", "remote", "sha256"), "A" * 64),
        (("configuration",), "text"),
        (("vmConfig", "environmentVariables"), {"hostEnvKeys": ["A"]}),
    ],
)
def test_filter_after_a_manual_edit_of_its_form_is_no_variant(
    path: tuple[str, ...], value: Any
) -> None:
    document = staged(variant(applyPorts=[1], context="GATEWAY"), None)
    (patch,) = document["spec"]["configPatches"]
    config = patch["patch"]["value"]["typedConfig"]["value"]["config"]
    for name in path[:-1]:
        config = config[name]
    config[path[-1]] = value
    assert variants_of(document) == Variants()


def test_digest_differs_wherever_requests_may_notice_and_nowhere_else() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"pluginConfig": ""},
        {"pluginConfig": "a"},
        {"rootID": ""},
        {"vmID": "v"},
        {"env": [{"name": "A"}]},
        {"env": [{"name": "A", "value": "b"}]},
        {"failStrategy": "FAIL_OPEN"},
        {"failStrategy": "FAIL_RELOAD"},
        {"applyPorts": [1]},
        {"applyPorts": [1, 2]},
        {"context": "GATEWAY"},
        {"position": "First"},
        {"allowOnHeadersStopIteration": True},
        {"position": "First", "allowOnHeadersStopIteration": True},
    ]
    digests = {variant(**fields).digest for fields in changes} | {variant("b" * 64).digest}
    assert len(digests) == len(changes) + 1
    assert variant(applyPorts=[2, 1]).digest == variant(applyPorts=[1, 2]).digest
    same = [{"priority": 3}, {"generation": 9}, {"spec": {"selector": {"matchLabels": {}}}}]
    assert {variant(**fields).digest for fields in same} == {variant().digest}
    assert variant(resend=4).digest == variant().digest


@pytest.mark.parametrize(
    ("config", "most"), [("", 500), ("x" * 2_000, 337), ("<" * 2_000, 78), ("x" * 250_000, 2)]
)
def test_capacity_for_names_fits_the_etcd_limit(config: str, most: int) -> None:
    fields = {"pluginConfig": config, "applyPorts": [9080]}
    new = variant("b" * 64, **fields)
    fits = capacity(autowasm(), FETCH, stable=variant(**fields), target=new, proxies=(B, C))
    proxies = [{"NAME": f"details-{n:03}", "NAMESPACE": "default"} for n in range(fits)]
    assert 0.9 * most < fits < 1.1 * most or fits == most
    document = staged(variant(**fields), new, proxies[:fits])
    stored = len(json.dumps(document).replace("<", "\\u003c"))
    assert stored < 1.1 * 1024 * 1024
    if fits < 500:
        more = staged(variant(**fields), new, proxies * 2)
        assert len(json.dumps(more).replace("<", "\\u003c")) > 1024 * 1024


@pytest.mark.parametrize("stable", [None, {}, {"applyPorts": [9080]}, {"applyPorts": [1, 15008]}])
@pytest.mark.parametrize(
    "target", [{"applyPorts": [9080]}, {"applyPorts": [1, 15008]}, {"context": "GATEWAY"}]
)
def test_one_more_name_than_the_capacity_is_too_large(
    stable: dict[str, Any] | None, target: dict[str, Any]
) -> None:
    large = {"pluginConfig": "x" * 20_000}
    old = variant(**large, **stable) if stable is not None else None
    new = variant("b" * 64, **large, **target)
    fits = capacity(autowasm(), FETCH, stable=old, target=new, proxies=(B,))

    def size(names: int) -> int:
        patches = staged(old, new, [B] * names)["spec"]["configPatches"]
        return len(json.dumps(patches, separators=(",", ":")))

    assert 10 < fits < 60
    assert size(fits) <= 1024 * 1024 < size(fits + 1)


def test_many_variables_leave_room_for_fewer_names() -> None:
    env = [{"name": f"N{number}"} for number in range(256)]
    fits = capacity(autowasm(), FETCH, stable=None, target=variant("b" * 64, env=env), proxies=(B,))
    assert 100 < fits < 150


def test_each_variant_has_vms_of_its_own_while_rollout_is_set() -> None:
    def vm_id(**fields: Any) -> str:
        return variant_of(autowasm(**{"vmID": "shared", **fields}), record()).vm_id

    staged_ = {"spec": {"rollout": {}}}
    assert vm_id() == vm_id(pluginConfig="a") == vm_id(name="other"), "as without rollouts"
    ids = {
        vm_id(**staged_),
        vm_id(pluginConfig="a", **staged_),
        vm_id(pluginConfig="b", **staged_),
        vm_id(rootID="r", **staged_),
        vm_id(name="other", **staged_),
        vm_id(namespace="other", **staged_),
    }
    assert len(ids) == 6
    assert all(one.startswith(f"shared-{'a' * 12}-") for one in ids)
