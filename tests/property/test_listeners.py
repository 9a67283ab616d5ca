"""inject() over generated templates: the template stays as it is but for the filters before each router."""

import copy
import json
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autowasm.standalone.listeners import ListenerTemplate
from tests.unit.standalone.lds import as_text

no_deadline = settings(deadline=None)
PORTS = st.sampled_from([80, 443, 9080])
CASES = st.booleans()
ROUTER = "envoy.filters.http.router"
MANAGER = "envoy.filters.network.http_connection_manager"
CONTEXTS = {
    "INBOUND": {"SIDECAR_INBOUND"},
    "OUTBOUND": {"SIDECAR_OUTBOUND"},
    None: {"SIDECAR_INBOUND", "GATEWAY"},
}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


@st.composite
def chains(draw: st.DrawFn) -> dict[str, Any]:
    filters: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 2))):
        snake = draw(CASES)
        spell = str if snake else camel
        if draw(st.booleans()):
            own = draw(st.lists(st.sampled_from(["own-a", "own-b", "own-c"]), max_size=3))
            http = [{"name": each, "x": number} for number, each in enumerate(own)]
            http.append({"name": ROUTER})
            config = {"@type": "x", "stat_prefix": "s", spell("http_filters"): http}
            filters.append({"name": MANAGER, spell("typed_config"): config})
        else:
            filters.append({"name": "tcp", spell("typed_config"): {"@type": "x.TcpProxy"}})
    return {"name": draw(st.text(max_size=3)), "filters": filters}


@st.composite
def templates(draw: st.DrawFn) -> dict[str, Any]:
    resources = []
    for number in range(draw(st.integers(1, 3))):
        spell = str if draw(CASES) else camel
        address = {spell("socket_address"): {spell("port_value"): draw(PORTS)}}
        one: dict[str, Any] = {
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": f"l{number}",
            "address": address,
            spell("filter_chains"): draw(st.lists(chains(), max_size=2)),
        }
        direction = draw(st.sampled_from(list(CONTEXTS)))
        if direction is not None:
            one[spell("traffic_direction")] = direction
        if draw(st.booleans()):
            one[spell("default_filter_chain")] = draw(chains())
        resources.append(one)
    return {"version_info": "1", "resources": resources}


@st.composite
def envoyfilters(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = st.sampled_from(["a", "b", "c"])
    keys = draw(st.lists(st.tuples(names, names), max_size=4, unique=True))
    made = []
    for namespace, name in keys:
        context = draw(st.sampled_from(["SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY"]))
        ports: list[int | None] = [*draw(st.lists(PORTS, max_size=2, unique=True))] or [None]
        priority = draw(st.one_of(st.none(), st.integers(-2, 2)))
        value = {"name": "wasm", "of": [priority or 0, namespace, name]}
        made.append(
            {
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "configPatches": [
                        {
                            "match": {
                                "context": context,
                                "listener": {} if port is None else {"portNumber": port},
                            },
                            "patch": {"value": copy.deepcopy(value)},
                        }
                        for port in ports
                    ],
                    **({} if priority is None else {"priority": priority}),
                },
            }
        )
    return made


def http_filters(node: Any) -> list[list[dict[str, Any]]]:
    """Every list of HTTP filters in the document."""
    found = []
    if isinstance(node, dict):
        for key, item in node.items():
            if key in {"http_filters", "httpFilters"}:
                found.append(item)
            else:
                found += http_filters(item)
    elif isinstance(node, list):
        for item in node:
            found += http_filters(item)
    return found


def expected_for(listener: dict[str, Any], filters: list[dict[str, Any]]) -> list[Any]:
    address = listener["address"]
    socket = address.get("socket_address") or address["socketAddress"]
    port = socket.get("port_value") or socket["portValue"]
    direction = listener.get("traffic_direction") or listener.get("trafficDirection")
    return sorted(
        patch["patch"]["value"]["of"]
        for each in filters
        for patch in each["spec"]["configPatches"]
        if patch["match"]["context"] in CONTEXTS[direction]
        and patch["match"]["listener"].get("portNumber") in {None, port}
    )


@no_deadline
@given(templates(), envoyfilters(), st.randoms(), st.booleans())
def test_templates_filters_stay_and_ours_stand_in_order_before_the_router(
    template: dict[str, Any], filters: list[dict[str, Any]], random: Any, as_json: bool
) -> None:
    before = copy.deepcopy((template, filters))
    made = ListenerTemplate(json.dumps(template) if as_json else as_text(template))

    text = made.inject(filters)
    result = yaml.safe_load(text)

    assert (template, filters) == before
    for listener in result["resources"]:
        expected = expected_for(listener, filters)
        for each in http_filters(listener):
            ours = [one["of"] for one in each if one["name"] == "wasm"]
            assert ours == expected
            assert each[-1]["name"] == ROUTER
            assert [one["of"] for one in each[-1 - len(ours) : -1]] == ours
            each[:] = [one for one in each if one["name"] != "wasm"]
    assert result == template  # nothing else was lost, added or moved
    random.shuffle(filters)
    assert made.inject(filters) == text
