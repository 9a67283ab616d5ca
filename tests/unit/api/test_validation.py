"""Every rule of the spec: the field and the message of the error."""

import json
from typing import Any

import pytest

from autowasm.api import validation
from autowasm.api.envoyfilter import render
from autowasm.api.v1alpha1 import OnUnknown, Rollout
from autowasm.errors import SpecError
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import document, record, sample

DEEP: Any = {}
for _ in range(70):
    DEEP = {"a": DEEP}


def source(**kinds: Any) -> dict[str, Any]:
    return {"source": kinds}


def url(text: str) -> dict[str, Any]:
    return source(object={"url": text})


def image(text: str) -> dict[str, Any]:
    return source(registry={"image": text})


URL = "spec.filter.source.object.url"
IMAGE = "spec.filter.source.registry.image"
CONFIG = "spec.filter.pluginConfig"
PORTS = "spec.filter.applyPorts"
MANY = list(range(1, 61))

OF_FILTER: list[tuple[dict[str, Any], str, str]] = [
    (source(), "spec.filter.source", "set exactly one of registry and object"),
    (source(registry={"image": "a"}, object={"url": "http://a"}), "spec.filter.source", "exactly one of"),
    (source(registry={}), IMAGE, "is required"),
    (source(oci={}), "spec.filter.source.oci", "unknown field"),
    (source(registry={"image": "a", "tag": "b"}), "spec.filter.source.registry.tag", "write the tag into image"),
    (image("https://a/b"), IMAGE, "without a scheme"),
    (image("a b"), IMAGE, "not a repository name"),
    (image(""), IMAGE, "the image reference is empty"),
    (url(""), URL, "must begin with http"),
    (url("ftp://a/b"), URL, "must begin with http"),
    (url("file:///etc/passwd"), URL, "must begin with http"),
    (url("https:///b"), URL, "has no host"),
    (url("https://u:p@a/b"), URL, "user name or password"),
    (url("https://u@a/b"), URL, "user name or password"),
    (url("https://a/b#c"), URL, "fragment"),
    (image("r.example:65536/f:v1"), IMAGE, "the port must be from 1 to 65535, not 65536"),
    (image("r.example:0/f:v1"), IMAGE, "the port must be from 1 to 65535, not 0"),
    (image("[::1]:70000/f"), IMAGE, "the port must be from 1 to 65535, not 70000"),
    (image("[::::]:5000/f"), IMAGE, "not an IPv6 address"),
    (url("https://a:99999/b"), URL, "the port must be a number from 1 to 65535"),
    (url("https://a:0/b"), URL, "the port must be a number from 1 to 65535"),
    (url("https://a:-1/b"), URL, "the port must be a number from 1 to 65535"),
    (url("https://a:x/b"), URL, "the port must be a number from 1 to 65535"),
    (url("https://[::1/b"), URL, "Invalid IPv6"),
    (url("https://a/b c"), URL, "percent-encoded"),
    (url("https://a/b\r\nHost: x"), URL, "percent-encoded"),
    (url("https://a\\@b/"), URL, "percent-encoded"),
    (url("https://a/" + "b" * 2048), URL, "longer than 2048"),
    ({"applyPorts": []}, PORTS, "at least one port"),
    ({"applyPorts": [0]}, f"{PORTS}[0]", "from 1 to 65535, not 0"),
    ({"applyPorts": [80, 65536]}, f"{PORTS}[1]", "from 1 to 65535"),
    ({"applyPorts": [80, 81, 80]}, f"{PORTS}[2]", "duplicate port 80"),
    ({"applyPorts": list(range(1, 102))}, PORTS, "more than 100"),
    ({"applyPorts": ["80"]}, f"{PORTS}[0]", '"80" is a string; remove the quotes'),
    ({"applyPorts": [True]}, f"{PORTS}[0]", "true is a boolean; use the number of a port"),
    ({"applyPorts": 80}, PORTS, "use a list: [80]"),
    ({"rootID": 3}, "spec.filter.rootID", "3 is a number; put it in quotes"),
    ({"rootID": "a\nb"}, "spec.filter.rootID", "control characters"),
    ({"rootID": "a" * 257}, "spec.filter.rootID", "longer than 256"),
    ({"rootId": "a"}, "spec.filter.rootId", "unknown field"),
    ({"vmID": "a\0"}, "spec.filter.vmID", "control characters"),
    ({"vmID": "a" * 257}, "spec.filter.vmID", "longer than 256"),
    ({"sha256": "a" * 63}, "spec.filter.sha256", "64 lower-case"),
    ({"sha256": "A" * 64}, "spec.filter.sha256", "64 lower-case"),
    ({"sha256": "sha256:" + "a" * 64}, "spec.filter.sha256", "64 lower-case"),
    ({"pluginConfig": None}, CONFIG, "not null"),
    ({"pluginConfig": [1]}, CONFIG, "not a list"),
    ({"pluginConfig": 1}, CONFIG, "not a number"),
    ({"pluginConfig": True}, CONFIG, "not a boolean"),
    ({"pluginConfig": "\ud800"}, CONFIG, "surrogate"),
    ({"pluginConfig": {"a": ["\udfff"]}}, f"{CONFIG}.a[0]", "surrogate"),
    ({"pluginConfig": {"a": float("nan")}}, f"{CONFIG}.a", "finite"),
    ({"pluginConfig": {"a": float("inf")}}, f"{CONFIG}.a", "finite"),
    ({"pluginConfig": {"a": {1: 2}}}, f"{CONFIG}.a", "put it in quotes"),
    ({"pluginConfig": {"a": b"x"}}, f"{CONFIG}.a", "must be JSON"),
    ({"pluginConfig": {"a": [1.2345678901234567] * 9_000}, "applyPorts": MANY}, CONFIG, "twice for each of 60 ports"),
    ({"env": [{"name": f"a{n}", "value": ""} for n in range(250)], "applyPorts": list(range(1, 101))}, "spec.filter.env", "can hold at most 20000"),
    ({"pluginConfig": "\U0001f600" * 17_000, "applyPorts": MANY}, CONFIG, "use fewer applyPorts"),
    ({"pluginConfig": "<" * 17_000, "applyPorts": MANY}, CONFIG, "use fewer applyPorts"),
    ({"pluginConfig": "\u2028" * 180_000}, CONFIG, "can hold at most 1048576"),
    ({"pluginConfig": {"a": "\u2029\f" * 120_000}}, CONFIG, "can hold at most 1048576"),
    ({"env": [{"name": f"a{n}", "value": "\b" * 2048} for n in range(100)]}, "spec.filter.env", "can hold at most"),
    ({"pluginConfig": "a" * 2**20}, CONFIG, "the EnvoyFilter can hold"),
    ({"env": [{"name": f"a{n}", "value": "v" * 2048} for n in range(200)], "applyPorts": MANY}, "spec.filter.env", "can hold at most"),
    ({"env": [{"name": ""}]}, "spec.filter.env[0].name", "1 to 256"),
    ({"env": [{"name": "a" * 257}]}, "spec.filter.env[0].name", "1 to 256"),
    ({"env": [{"name": "a=b"}]}, "spec.filter.env[0].name", "'='"),
    ({"env": [{"name": "a\n"}]}, "spec.filter.env[0].name", "control characters"),
    ({"env": [{"name": "a"}, {"name": "a"}]}, "spec.filter.env[1].name", "duplicate variable a"),
    ({"env": [{"name": "a", "value": "v" * 2049}]}, "spec.filter.env[0].value", "longer than 2048"),
    ({"env": [{"value": "v"}]}, "spec.filter.env[0].name", "is required"),
    ({"env": [{"name": "a", "valueFrom": "HOST"}]}, "spec.filter.env[0].valueFrom", "not supported"),
    ({"env": [{"name": f"a{n}"} for n in range(257)]}, "spec.filter.env", "more than 256"),
    ({"failStrategy": "OPEN"}, "spec.filter.failStrategy",
     "must be one of FAIL_CLOSE, FAIL_OPEN, FAIL_RELOAD, not 'OPEN'"),
    ({"context": "SIDECAR"}, "spec.filter.context",
     "must be one of SIDECAR_INBOUND, SIDECAR_OUTBOUND, GATEWAY, not 'SIDECAR'"),
    ({"pullPolicy": "Never"}, "spec.filter.pullPolicy", "must be one of IfNotPresent, Always, not 'Never'"),
    ({"failStrategy": 3}, "spec.filter.failStrategy", "must be one of FAIL_CLOSE, FAIL_OPEN, FAIL_RELOAD, not 3"),
    ({"priority": 2**31}, "spec.filter.priority", "32 bits"),
    ({"priority": -(2**31) - 1}, "spec.filter.priority", "32 bits"),
    ({"priority": 1.5}, "spec.filter.priority", "use a whole number"),
    ({"refreshInterval": "29s"}, "spec.filter.refreshInterval", "at least 30s"),
    ({"refreshInterval": "0"}, "spec.filter.refreshInterval", "at least 30s"),
    ({"refreshInterval": "often"}, "spec.filter.refreshInterval", "not a duration"),
    ({"refreshInterval": 60}, "spec.filter.refreshInterval", "60 is a number; use a duration with its unit, such as 5m"),
    ({"phase": "AUTHN"}, "spec.filter.phase", "not supported; use spec.filter.position and spec.filter.priority"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "says"), OF_FILTER)
def test_wrong_filter_field_is_named(fields: dict[str, Any], field: str, says: str) -> None:
    assert_refused(document(**fields), field, says)


LABELS = "spec.selector.matchLabels"

OF_SPEC: list[tuple[dict[str, Any], str, str]] = [
    ({"secret": ""}, "spec.secret", "name of a Secret"),
    ({"secret": "a/b"}, "spec.secret", "name of a Secret"),
    ({"secret": "../x"}, "spec.secret", "name of a Secret"),
    ({"secret": "A"}, "spec.secret", "name of a Secret"),
    ({"secret": "a" * 254}, "spec.secret", "name of a Secret"),
    ({"secret": {"name": "a"}}, "spec.secret", 'use the name itself: "a"'),
    ({"secrets": "a"}, "spec.secrets", "unknown field"),
    ({"selector": {}}, LABELS, "is required"),
    ({"selector": None}, "spec.selector", "is null; use a mapping with matchLabels"),
    ({"selector": {"matchLabels": None}}, LABELS, "is null; use a mapping of labels"),
    ({"selector": {"matchLabels": {}, "matchExpressions": []}}, "spec.selector.matchExpressions", "not supported"),
    ({"selector": {"matchLabels": {"app": 1}}}, f"{LABELS}[app]", "1 is a number; put it in quotes"),
    ({"selector": {"matchLabels": {1: "app"}}}, LABELS, "put it in quotes"),
    ({"selector": {"matchLabels": {"": "a"}}}, f"{LABELS}[]", "not a label key"),
    ({"selector": {"matchLabels": {"a b": "a"}}}, f"{LABELS}[a b]", "not a label key"),
    ({"selector": {"matchLabels": {"/a": "a"}}}, f"{LABELS}[/a]", "DNS name"),
    ({"selector": {"matchLabels": {"A!/a": "a"}}}, f"{LABELS}[A!/a]", "DNS name"),
    ({"selector": {"matchLabels": {"a": "-"}}}, f"{LABELS}[a]", "not a label value"),
    ({"selector": {"matchLabels": {"a": "x" * 64}}}, f"{LABELS}[a]", "not a label value"),
    ({"selector": {"matchLabels": {"a": "x\n"}}}, f"{LABELS}[a]", "not a label value"),
]  # fmt: skip


ROLLOUT = "spec.rollout"
STEPS = f"{ROLLOUT}.steps"

OF_ROLLOUT: list[tuple[Any, str, str]] = [
    ([], ROLLOUT, "is a list; use a mapping with steps"),
    ({"step": [1]}, f"{ROLLOUT}.step", "unknown field"),
    ({"steps": []}, STEPS, "list at least one step, or omit the field"),
    ({"steps": [*range(1, 22)]}, STEPS, "more than 20 steps"),
    ({"steps": 1}, STEPS, "1 is a number; use a list"),
    ({"steps": [True]}, f"{STEPS}[0]", "true is a boolean; use a whole number of Pods"),
    ({"steps": [0]}, f"{STEPS}[0]", "a count must be from 1 to 1000000, not 0"),
    ({"steps": [1_000_001]}, f"{STEPS}[0]", "not 1000001"),
    ({"steps": ["1"]}, f"{STEPS}[0]", "'1' is a string; write 1 for Pods, or 1% for a percentage"),
    ({"steps": ["0%"]}, f"{STEPS}[0]", "from 1% to 100%"),
    ({"steps": ["101%"]}, f"{STEPS}[0]", "from 1% to 100%"),
    ({"steps": ["1.5%"]}, f"{STEPS}[0]", "from 1% to 100%"),
    ({"steps": ["01%"]}, f"{STEPS}[0]", "from 1% to 100%"),
    ({"steps": ["10%\n"]}, f"{STEPS}[0]", "from 1% to 100%"),
    ({"steps": [1, 5, 5]}, f"{STEPS}[2]", "5 adds no Pod to an earlier count: steps must increase"),
    ({"steps": [5, "10%", 4]}, f"{STEPS}[2]", "4 adds no Pod to an earlier count"),
    ({"steps": ["10%", 1]}, f"{STEPS}[1]", "1 adds no Pod to an earlier percentage"),
    ({"steps": ["10%", 5, "10%"]}, f"{STEPS}[2]", "10% adds no Pod to an earlier percentage"),
    ({"steps": ["50%", "5%"]}, f"{STEPS}[1]", "5% adds no Pod to an earlier percentage"),
    ({"steps": ["100%", 7]}, f"{STEPS}[1]", "follows 100%, so it adds no Pod"),
    ({"pause": 30}, f"{ROLLOUT}.pause", "30 is a number; use a duration with its unit, such as 30s"),
    ({"pause": "soon"}, f"{ROLLOUT}.pause", "not a duration"),
    ({"pause": "0"}, f"{ROLLOUT}.pause", "at least 1s"),
    ({"pause": "999ms"}, f"{ROLLOUT}.pause", "at least 1s"),
    ({"deadline": "0.5s"}, f"{ROLLOUT}.deadline", "at least 1s"),
    ({"deadline": "1" * 63 + "s"}, f"{ROLLOUT}.deadline", "not a duration"),
    ({"deadline": "1s" * 33}, f"{ROLLOUT}.deadline", "longer than 64"),
    ({"maxFailureRatio": -0.01}, f"{ROLLOUT}.maxFailureRatio", "from 0 to 1, not -0.01"),
    ({"maxFailureRatio": 1.01}, f"{ROLLOUT}.maxFailureRatio", "from 0 to 1"),
    ({"maxFailureRatio": float("nan")}, f"{ROLLOUT}.maxFailureRatio", "from 0 to 1"),
    ({"maxFailureRatio": "1%"}, f"{ROLLOUT}.maxFailureRatio", '"1%" is a string; use a number'),
    ({"onUnknown": "Abort"}, f"{ROLLOUT}.onUnknown", "must be one of Wait, Continue, not 'Abort'"),
]  # fmt: skip


@pytest.mark.parametrize(("rollout", "field", "says"), OF_ROLLOUT)
def test_wrong_rollout_field_is_named(rollout: Any, field: str, says: str) -> None:
    assert_refused(document(spec={"rollout": rollout}), field, says)


@pytest.mark.parametrize(
    "rollout",
    [
        None,
        {},
        {"steps": [1, "10%", 50, "50%"]},
        {"steps": ["10%", 2, "100%"]},
        {"steps": [1_000_000]},
        {"pause": "1s", "deadline": "1000ms", "maxFailureRatio": 0, "onUnknown": "Continue"},
        {"maxFailureRatio": 1, "pause": "1h0.5s", "deadline": "7d"},
    ],
)
def test_rollout_at_its_limits_is_accepted(rollout: Any) -> None:
    validation.parse(document(spec={"rollout": rollout}))


def test_default_steps_and_times_are_those_of_the_documentation() -> None:
    rollout = validation.parse(document(spec={"rollout": {}})).spec.rollout
    assert rollout == Rollout((1, "10%", "50%"), "30s", "10m", 0.01, OnUnknown.WAIT)
    assert validation.parse(document()).spec.rollout is None


def test_with_a_rollout_there_is_room_for_half_the_configuration() -> None:
    half = "x" * (2**19 - 100)
    validation.parse(document(pluginConfig=half, spec={"rollout": {}}))
    validation.parse(document(pluginConfig=half + "x" * 200))
    assert_refused(
        document(pluginConfig=half + "x" * 200, spec={"rollout": {}}),
        CONFIG,
        "twice during a rollout",
    )


@pytest.mark.parametrize(("fields", "field", "says"), OF_SPEC)
def test_wrong_spec_field_is_named(fields: dict[str, Any], field: str, says: str) -> None:
    assert_refused(document(spec=fields), field, says)


def changed(**fields: Any) -> dict[str, Any]:
    return {**document(), **fields}


@pytest.mark.parametrize(
    ("whole", "field", "says"),
    [
        (changed(apiVersion="wasm.tcm.io/v1"), "apiVersion", "supports wasm.tcm.io/v1alpha1, not wasm.tcm.io/v1"),
        (changed(kind="WasmPlugin"), "kind", "must be AutoWasm, not WasmPlugin"),
        (changed(spec=None), "spec", "too many values to be read"),
        (changed(spec=[]), "spec", "is a list; use a mapping"),
        (changed(spec={}), "spec.filter", "is required"),
        (changed(spec={"filter": {}}), "spec.filter.source", "is required"),
        (changed(spec={1: 2}), "spec", "put it in quotes"),
        (changed(metadata={}), "metadata.name", "is required"),
        (changed(metadata=3), "metadata", "3 is a number; use a mapping"),
        ({"metadata": {"name": "a"}}, "spec", "is required"),
        ({}, "metadata", "is required"),
        ({1: 2}, "object", "put it in quotes"),
    ],
)  # fmt: skip
def test_wrong_envelope_is_named(whole: dict[str, Any], field: str, says: str) -> None:
    assert_refused(whole, field, says)


def assert_refused(whole: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        validation.parse(whole)
    assert caught.value.field == field
    assert says in caught.value.problem
    assert str(caught.value) == f"{field}: {caught.value.problem}"
    assert caught.value.reason == "InvalidSpec"


def test_nesting_is_bounded() -> None:
    with pytest.raises(SpecError, match="nested deeper than 64 levels") as caught:
        validation.parse(document(pluginConfig=DEEP))
    assert caught.value.field.startswith("spec.filter.pluginConfig.a.a")


def test_message_never_shows_the_query_of_a_url() -> None:
    with pytest.raises(SpecError) as caught:
        validation.parse(document(**url("https://host:x/path?signature=secret")))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"source": {"object": {"url": "http://a.b:8080/c?d=e"}}},
        {"source": {"registry": {"image": "a"}, "object": None}},
        {"applyPorts": [1, 65535]},
        {"sha256": "0" * 64},
        {"pluginConfig": {"a": 2**64, "b": -(2**53) - 1, "c": 1e300}},
        {"pluginConfig": ""},
        {"env": [{"name": "A", "value": ""}]},
        {"priority": -(2**31)},
        {"refreshInterval": "30s", "pullPolicy": "IfNotPresent"},
        {"rootID": "", "vmID": "ünïcode"},
        {"applyPorts": None, "vmID": None, "pullPolicy": None},
    ],
)
def test_values_at_the_limit_are_accepted(fields: dict[str, Any]) -> None:
    validation.parse(document(**fields))


@pytest.mark.parametrize(
    "labels", [{}, {"a": ""}, {"app.kubernetes.io/name": "x" * 63}, {"a-b_c.d": "A1"}]
)
def test_any_labels_that_kubernetes_takes_are_taken(labels: dict[str, str]) -> None:
    result = validation.parse(document(spec={"selector": {"matchLabels": labels}}))
    assert result.spec.selector.match_labels == labels


@pytest.mark.parametrize("name", ["autowasm-registry.yaml", "autowasm-object.yaml"])
def test_reference_objects_are_valid(name: str) -> None:
    assert validation.parse(sample(name)).metadata.name == "test"


def test_unknown_fields_of_metadata_and_status_are_accepted() -> None:
    validation.parse({**document(metadata={"managedFields": []}), "status": {"phase": "x"}})


def test_a_field_whose_name_is_no_text_is_refused() -> None:
    with pytest.raises(SpecError, match="surrogate"):
        validation.parse(document(**{"\ud800": 1}))


def test_a_config_of_too_many_values_is_refused_and_one_string_is_not() -> None:
    values = {f"k{number}": number for number in range(10_000)}
    with pytest.raises(SpecError, match="more than 10000 values"):
        validation.parse(document(pluginConfig=values))
    validation.parse(document(pluginConfig="x" * 1_000_000))


def test_fields_too_large_when_repeated_for_each_port_are_refused() -> None:
    config, ports = "x" * 20_000, list(range(1, 101))
    validation.parse(document(pluginConfig=config))
    with pytest.raises(SpecError, match="twice for each of 100 ports") as caught:
        validation.parse(document(pluginConfig=config, applyPorts=ports))
    assert caught.value.field == CONFIG
    env = [{"name": f"N{number}", "value": "v" * 2048} for number in range(256)]
    with pytest.raises(SpecError, match="twice for each of 100 ports") as caught:
        validation.parse(document(env=env, applyPorts=ports))
    assert caught.value.field == "spec.filter.env"


def test_accepted_spec_renders_an_envoyfilter_within_etcds_limit() -> None:
    """etcd's limit is 1.5 MiB for a request (`--max-request-bytes`), of which the object is nearly all."""
    ports = list(range(1, 101))
    longest = "x" * (2**20 // 200 - 100)
    accepted = validation.parse(document(pluginConfig=longest, applyPorts=ports))
    text = json.dumps(render(accepted, record(), EnvoyFetch(), resend=999))
    assert 2**20 < len(text) < 1.4 * 2**20
    with pytest.raises(SpecError, match="twice for each of 100 ports"):
        validation.parse(document(pluginConfig=longest + "x" * 200, applyPorts=ports))
    # Gateways have one patch for each port, so room for twice as much.
    validation.parse(document(pluginConfig=longest * 2, applyPorts=ports, context="GATEWAY"))
