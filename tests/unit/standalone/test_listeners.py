"""Filters put into a listener template, as istiod would."""

import copy
import json
from typing import Any

import pytest
import yaml

from autowasm.api.envoyfilter import render
from autowasm.errors import UsageError
from autowasm.manifests.nodes import Unreadable
from autowasm.settings import EnvoyFetch
from autowasm.standalone import listeners
from autowasm.standalone.listeners import ListenerTemplate
from tests.fakes import autowasms
from tests.unit.standalone.lds import (
    LISTENER,
    as_text,
    chain,
    envoyfilter,
    inject,
    listener,
    names,
)


def placed(template: Any, *envoyfilters: dict[str, Any]) -> list[list[str]]:
    """Names of the HTTP filters in each chain of each listener."""
    document = inject(template, envoyfilters)
    return [names(each) for one in document["resources"] for each in one["filter_chains"]]


def test_filter_stands_before_the_router_behind_the_templates_own() -> None:
    template = {"resources": [listener(9080, chain("cors", "fault"))]}
    assert placed(template, envoyfilter()) == [["cors", "fault", "default/test", "router"]]


def test_every_chain_and_every_manager_gets_it() -> None:
    two = chain()
    two["filters"].append(copy.deepcopy(two["filters"][0]))
    one = listener(9080, chain(), two, default_filter_chain=chain())

    document = inject({"resources": [one]}, [envoyfilter()])

    (result,) = document["resources"]
    assert [names(each) for each in result["filter_chains"]] == [["default/test", "router"]] * 2
    assert names({"filters": result["filter_chains"][1]["filters"][1:]})[0] == "default/test"
    assert names(result["default_filter_chain"]) == ["default/test", "router"]


def test_names_of_json_are_understood_as_well() -> None:
    config = {"@type": "x.HttpConnectionManager", "httpFilters": [{"name": "envoy.filters.http.router"}]}  # fmt: skip
    network = {"filters": [{"name": "any name", "typedConfig": config}]}
    one = {
        "@type": LISTENER,
        "address": {"socketAddress": {"portValue": "9080"}},
        "filterChains": [copy.deepcopy(network)],
        "defaultFilterChain": copy.deepcopy(network),
        "trafficDirection": "INBOUND",
    }
    (result,) = inject({"resources": [one]}, [envoyfilter("test", 9080)])["resources"]
    assert names(result["filterChains"][0]) == ["default/test", "router"]
    assert names(result["defaultFilterChain"]) == ["default/test", "router"]


def test_other_network_filters_are_left_alone() -> None:
    tcp = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {"@type": "x.TcpProxy"}}]}  # fmt: skip
    template = {"resources": [listener(9080, tcp)]}
    assert inject(template, [envoyfilter()]) == template


def test_ports_decide_which_listeners_take_it() -> None:
    template = {"resources": [listener(9080), listener(9081), listener(9082)]}
    assert placed(template, envoyfilter("some", 9080, 9082), envoyfilter("all")) == [
        ["default/all", "default/some", "router"],
        ["default/all", "router"],
        ["default/all", "default/some", "router"],
    ]


@pytest.mark.parametrize(
    ("direction", "contexts"),
    [
        (None, ["SIDECAR_INBOUND", "GATEWAY"]),
        ("UNSPECIFIED", ["SIDECAR_INBOUND", "GATEWAY"]),
        (0, ["SIDECAR_INBOUND", "GATEWAY"]),
        ("INBOUND", ["SIDECAR_INBOUND"]),
        (1, ["SIDECAR_INBOUND"]),
        ("OUTBOUND", ["SIDECAR_OUTBOUND"]),
        (2, ["SIDECAR_OUTBOUND"]),
    ],
)
def test_directions_decide_which_contexts_fit(direction: object, contexts: list[str]) -> None:
    fields = {} if direction is None else {"traffic_direction": direction}
    template = {"resources": [listener(9080, **fields)]}
    ListenerTemplate(as_text(template))
    for context in ("SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY"):
        expected = ["default/test", "router"] if context in contexts else ["router"]
        assert placed(template, envoyfilter("test", 9080, context=context)) == [expected]


def test_order_is_priority_then_namespace_then_name() -> None:
    ordered = [
        envoyfilter("z", priority=-10),
        envoyfilter("b", namespace="a"),
        envoyfilter("a", namespace="b"),
        envoyfilter("c", namespace="b", priority=0),
        envoyfilter("a", namespace="a", priority=10),
    ]
    expected = ["default/z", "a/b", "b/a", "b/c", "a/a", "router"]
    for given in (ordered, ordered[::-1]):
        assert placed({"resources": [listener()]}, *given) == [expected]


def first(name: str, *ports: int, priority: int = 0) -> dict[str, Any]:
    """As `envoyfilter`, for a filter that is first."""
    found = envoyfilter(name, *ports, priority=priority)
    for patch in found["spec"]["configPatches"]:
        patch["patch"]["operation"] = "INSERT_FIRST"
    return found


def test_first_filter_is_before_the_templates_own_and_the_highest_priority_before_the_others() -> (
    None
):
    filters = [
        envoyfilter("last", priority=9),
        *(first(f"f{number}", priority=number) for number in (1, 3, 2)),
    ]
    three = ["default/f3", "default/f2", "default/f1"]
    assert placed({"resources": [listener(9080, chain("cors"))]}, *filters) == [
        [*three, "cors", "default/last", "router"]
    ]
    assert placed({"resources": [listener(9080, chain())]}, *filters) == [
        [*three, "default/last", "router"]
    ]


def test_first_filter_is_on_its_ports_only_also_where_chains_share_their_filters() -> None:
    shared = chain("cors")
    template = {"resources": [listener(9080, shared), listener(9081, shared)]}
    filters = [first("first", 9080), envoyfilter("last", 9081)]
    assert placed(template, *filters) == [
        ["default/first", "cors", "router"],
        ["cors", "default/last", "router"],
    ]


def test_text_of_a_template_stays_around_first_and_last_filters() -> None:
    text = """\
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  address: {socket_address: {address: 127.0.0.1, port_value: 9080}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        http_filters:
        # mine
        - name: cors   # always
        - name: envoy.filters.http.router
"""
    made = ListenerTemplate(text).inject([first("first"), envoyfilter("last")])
    (one,) = yaml.safe_load(made)["resources"]
    assert names(one["filter_chains"][0]) == ["default/first", "cors", "default/last", "router"]
    assert [line for line in text.splitlines() if line not in made.splitlines()] == []


def test_equal_input_gives_equal_bytes_and_input_stays_as_it_was() -> None:
    template = {"resources": [listener(9080), listener(9081)]}
    envoyfilters = [envoyfilter("b"), envoyfilter("a", 9081)]
    before = copy.deepcopy((template, envoyfilters))

    made = ListenerTemplate(as_text(template))
    one, two = made.inject(envoyfilters), made.inject(envoyfilters[::-1])

    assert one == two
    assert (template, envoyfilters) == before


def test_without_filters_it_is_the_template() -> None:
    template = {"version_info": "1", "resources": [listener()]}
    assert inject(template, []) == template


def test_rendered_envoyfilters_pass_the_check_and_are_put_in_whole() -> None:
    autowasm = autowasms.autowasm(applyPorts=[9080], priority=5)
    rendered = render(autowasm, autowasms.record(), EnvoyFetch())

    listeners.check_envoyfilter(rendered)
    document = inject({"resources": [listener(9080)]}, [rendered])

    manager = document["resources"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["http_filters"][0] == rendered["spec"]["configPatches"][0]["patch"]["value"]


@pytest.mark.parametrize("bare", [True, False])
def test_bare_listeners_become_a_document_with_types(bare: bool) -> None:
    one = listener(9080)
    del one["@type"]
    document = inject(one if bare else [one], [envoyfilter()])
    assert document["resources"][0]["@type"] == LISTENER
    assert names(document["resources"][0]["filter_chains"][0]) == ["default/test", "router"]


@pytest.mark.parametrize(
    "fields",
    [
        {"address": {"pipe": {"path": "@x"}}},
        {"address": {"envoy_internal_address": {}}},
        {"address": None, "internal_listener": {}},
    ],
)
def test_listener_without_a_port_takes_filters_for_all_ports_only(fields: dict[str, Any]) -> None:
    template = {"resources": [listener(9080, **fields)]}
    ListenerTemplate(as_text(template))
    assert placed(template, envoyfilter("all"), envoyfilter("some", 9080)) == [
        ["default/all", "router"]
    ]


def without_router() -> dict[str, Any]:
    one = chain("cors")
    one["filters"][0]["typed_config"]["http_filters"].pop()
    return one


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "must be an LDS document"),
        ("text", "must be an LDS document"),
        ({}, "must be an LDS document"),
        ([], "must be an LDS document"),
        ({"resources": []}, "at least one"),
        ({"resources": {"a": 1}}, "at least one"),
        ({"static_resources": {"listeners": [listener()]}}, "not a whole bootstrap"),
        ({"resources": ["text"]}, r"resources\[0\]: must be a listener"),
        ({"resources": [listener(), {"name": "x"}]}, r"resources\[1\]: has no address"),
        ({"resources": [listener(address={"socket_address": {}})]}, "port_value"),
        ({"resources": [listener(address={"socket_address": {"port_value": True}})]}, "port_value"),
        ({"resources": [{**listener(), "@type": "x.Cluster"}]}, r"resources\[0\]\.@type: must be"),
        ({"resources": [listener(traffic_direction="inbound")]}, "traffic_direction: must be"),
        ({"resources": [listener(traffic_direction=["INBOUND"])]}, "traffic_direction: must be"),
        ({"resources": [listener(filter_chains={})]}, r"resources\[0\]\.filter_chains: must be a list"),
        ({"resources": [listener(filter_chains=["x"])]}, r"filter_chains\[0\]: must be a filter chain"),
        ({"resources": [listener(filter_chains=[{"filters": ["x"]}])]}, r"filters\[0\]: must be a filter"),
        ({"resources": [listener(default_filter_chain="x")]}, "default_filter_chain: must be"),
        (
            {"resources": [listener(9080, chain(), without_router())]},
            r"resources\[0\]\.filter_chains\[1\]\.filters\[0\]\.typed_config\.http_filters: no envoy",
        ),
        (
            {"resources": [listener(9080, {"filters": [{"name": "envoy.filters.network.http_connection_manager"}]})]},
            r"filters\[0\]\.typed_config: is missing",
        ),
    ],
)  # fmt: skip
def test_template_that_has_no_place_for_a_filter_is_refused_with_the_path(
    template: Any, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        ListenerTemplate(as_text(template))


@pytest.mark.parametrize(
    "damage",
    [
        lambda each: each.pop("metadata"),
        lambda each: each["metadata"].pop("name"),
        lambda each: each["metadata"].update(namespace=1),
        lambda each: each.pop("spec"),
        lambda each: each.update(spec=None),
        lambda each: each["spec"].update(configPatches=None),
        lambda each: each["spec"].update(configPatches=["x"]),
        lambda each: each["spec"].update(priority="high"),
        lambda each: each["spec"].update(priority=None),
        lambda each: each["spec"]["configPatches"][0].pop("match"),
        lambda each: each["spec"]["configPatches"][0]["match"].update(listener=[]),
        lambda each: each["spec"]["configPatches"][0]["match"].update(context=[]),
        lambda each: each["spec"]["configPatches"][0]["patch"].update(value="x"),
    ],
)
def test_damaged_envoyfilter_is_found(damage: Any) -> None:
    document = envoyfilter()
    listeners.check_envoyfilter(document)
    damage(document)
    with pytest.raises(ValueError, match="not an EnvoyFilter written by wasmer"):
        listeners.check_envoyfilter(document)


def injected(text: str) -> Any:
    return yaml.safe_load(ListenerTemplate(text).inject([envoyfilter()]))


@pytest.mark.parametrize("bare", [True, False])
def test_bare_listeners_in_flow_style_become_a_document(bare: bool) -> None:
    one = listener(9080)
    text = json.dumps(one if bare else [one])
    for given in (text, f"# the mesh\n{text} # end\n"):
        (result,) = injected(given)["resources"]
        assert names(result["filter_chains"][0]) == ["default/test", "router"]


def test_bare_listener_with_empty_lines_becomes_a_document() -> None:
    text = yaml.safe_dump(listener(9080)).replace("\n", "\n\n")
    (result,) = injected(text)["resources"]
    assert names(result["filter_chains"][0]) == ["default/test", "router"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_template_without_content_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be an LDS document"):
        ListenerTemplate(text)


def test_listener_with_only_a_default_chain_takes_the_filter() -> None:
    one = listener(9080, default_filter_chain=chain())
    del one["filter_chains"]
    (result,) = inject({"resources": [one]}, [envoyfilter()])["resources"]
    assert names(result["default_filter_chain"]) == ["default/test", "router"]


def test_port_that_is_no_value_is_refused() -> None:
    for port in ([9080], {"value": 9080}):
        template = {"resources": [listener(address={"socket_address": {"port_value": port}})]}
        with pytest.raises(UsageError, match="port_value"):
            ListenerTemplate(as_text(template))


def test_aliases_that_multiply_are_refused_before_they_are_written_out() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    text = "\n".join(lines) + "\nresources: []\n"
    with pytest.raises((UsageError, Unreadable), match="aliases expanded"):
        ListenerTemplate(text)
