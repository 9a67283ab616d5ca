"""The HTTP filters of each filter chain, as istiod renders them, for each kind of proxy and each form of our EnvoyFilter.

`test_ambient_sidecar.py` tests the effect on a proxy. "As before" in these tests means the result of the reference's patches alone.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from autowasm.api import patches
from autowasm.api.envoyfilter import REFERENCED_SERVICES, render
from autowasm.settings import EnvoyFetch
from tests.fakes.autowasms import autowasm, record
from tests.parts import listeners
from tests.parts.listeners import Chain, Proxy, Rendered

Document = Mapping[str, Any]

LABELS = {"app": "details"}
AMBIENT = {"PILOT_ENABLE_AMBIENT": "true"}
WASM = "envoy.filters.http.wasm"
OURS = f"{WASM}/test"
CLUSTER = EnvoyFetch().cluster

PLAIN = Proxy(name="plain", address="10.0.0.1", labels=LABELS)
TUNNELLED = Proxy(
    name="tunnelled", address="10.0.0.2", labels=LABELS, metadata={"ENABLE_HBONE": "true"}
)
# Its listeners are bound to the ports themselves, by a Sidecar object.
BOUND = Proxy(
    name="bound",
    address="10.0.0.3",
    labels={**LABELS, "bound": "true"},
    metadata={"ENABLE_HBONE": "true"},
)
GATEWAY = Proxy(name="gateway", type="router", address="10.0.0.4", labels={**LABELS, "gw": "true"})
WAYPOINT = Proxy(
    name="waypoint",
    type="waypoint",
    address="10.0.0.5",
    labels={
        **LABELS,
        "gateway.networking.k8s.io/gateway-name": "waypoint",
        "gateway.istio.io/managed": "istio.io-mesh-controller",
    },
)
PROXIES = (PLAIN, TUNNELLED, BOUND, GATEWAY, WAYPOINT)


def networking(
    kind: str, name: str, spec: Document, *, version: str = "v1", **metadata: Any
) -> dict[str, Any]:
    return {
        "apiVersion": f"networking.istio.io/{version}",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default", **metadata},
        "spec": spec,
    }


def port(number: int, protocol: str = "HTTP") -> dict[str, Any]:
    return {"number": number, "name": f"{protocol.lower()}-{number}", "protocol": protocol}


MESH: tuple[dict[str, Any], ...] = (
    networking(
        "ServiceEntry",
        "details",
        {
            "hosts": ["details.default.svc.cluster.local"],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [port(9080), port(9081), port(9090, "TCP")],
            "endpoints": [{"address": one.address, "labels": LABELS} for one in (PLAIN, TUNNELLED)],
        },
    ),
    networking(
        "Sidecar",
        "bound",
        {
            "workloadSelector": {"labels": {"bound": "true"}},
            "ingress": [
                {
                    "port": port(number),
                    "bind": BOUND.address,
                    "captureMode": "NONE",
                    "defaultEndpoint": "127.0.0.1:8000",
                }
                for number in (9080, 9081)
            ],
            "egress": [{"hosts": ["*/*"]}],
        },
    ),
    networking(
        "ServiceEntry",
        "wasmer",
        {
            "hosts": ["wasmer.istio-system.svc.cluster.local"],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [port(8081)],
            "endpoints": [{"address": "10.0.1.1"}],
        },
        namespace="istio-system",
    ),
    networking(
        "Gateway",
        "entrance",
        {"selector": {"gw": "true"}, "servers": [{"port": port(80), "hosts": ["*"]}]},
    ),
    networking(
        "VirtualService",
        "entrance",
        {
            "hosts": ["*"],
            "gateways": ["entrance"],
            "http": [
                {
                    "route": [
                        {
                            "destination": {
                                "host": "details.default.svc.cluster.local",
                                "port": {"number": 9080},
                            }
                        }
                    ]
                }
            ],
        },
    ),
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "waypoint",
            "namespace": "default",
            "labels": {"gateway.networking.k8s.io/gateway-name": "waypoint"},
        },
        "spec": {
            "clusterIP": "10.1.0.1",
            "ports": [{"name": "mesh", "port": 15008, "appProtocol": "hbone"}],
            "selector": {"gateway.networking.k8s.io/gateway-name": "waypoint"},
        },
    },
    networking("WorkloadEntry", "waypoint", {"address": WAYPOINT.address, "labels": dict(WAYPOINT.labels)}),
    {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "waypoint", "namespace": "default"},
        "spec": {
            "gatewayClassName": "waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
        "status": {
            "addresses": [{"type": "Hostname", "value": "waypoint.default.svc.cluster.local"}]
        },
    },
    networking(
        "ServiceEntry",
        "app",
        {
            "hosts": ["app.com"],
            "addresses": ["10.2.0.1"],
            "resolution": "STATIC",
            "ports": [port(80)],
            "endpoints": [{"address": "10.0.0.9"}],
        },
        labels={"istio.io/use-waypoint": "waypoint"},
    ),
)  # fmt: skip


_RENDERED: dict[str, Mapping[str, Rendered]] = {}


def ours(**fields: Any) -> dict[str, Any]:
    return render(autowasm(**fields), record(), EnvoyFetch())


def as_before(envoyfilter: Document) -> dict[str, Any]:
    """The patches of earlier versions, in the shape of the reference."""
    result = copy.deepcopy(dict(envoyfilter))
    result["spec"]["configPatches"] = [
        each
        for each in result["spec"]["configPatches"]
        if each["patch"]["operation"] == "INSERT_BEFORE" and "name" not in each["match"]["listener"]
    ]
    return result


def stranger(
    plugin: str = "stranger",
    *,
    name: str = WASM,
    priority: int = 0,
    listener: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Another vendor's Wasm filter before the router; by default with the name that all Wasm filters have."""
    document = as_before(ours(name=plugin, priority=priority))
    document["metadata"].pop("ownerReferences", None)
    for each in document["spec"]["configPatches"]:
        each["patch"]["value"]["name"] = name
        each["match"]["listener"].update(listener or {})
    return document


def peer_authentication(mode: str) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "istio-system"},
        "spec": {"mtls": {"mode": mode}},
    }


async def renders(
    *documents: Document, flags: Mapping[str, str] | None = AMBIENT
) -> Mapping[str, Rendered]:
    key = json.dumps([documents, flags], sort_keys=True)
    if key not in _RENDERED:  # many cases have the same expected value
        _RENDERED[key] = await listeners.rendered([*MESH, *documents], PROXIES, flags=flags)
    return _RENDERED[key]


def http_chains(rendered: Rendered, ports: Sequence[int] | None) -> list[Chain]:
    """The inbound chains that receive requests (not the tunnel's), of these ports or of all."""
    inbound = [
        name
        for name in rendered.digests
        if name in {"virtualInbound", patches.INNER} or name.startswith(BOUND.address)
    ]
    return [
        chain
        for name in inbound
        for chain in rendered.of(name)
        if ports is None or port_of(chain) in ports
    ]


def port_of(chain: Chain) -> int | None:
    return chain.port or (
        int(chain.listener.rpartition("_")[2]) if chain.listener.startswith("10.") else None
    )


SHAPES: list[Any] = [
    pytest.param({"applyPorts": [9080]}, id="a port"),
    pytest.param({"applyPorts": [9081, 9080]}, id="two ports"),
    pytest.param({}, id="every port"),
    pytest.param({"priority": -10}, id="every port, priority"),
    pytest.param({"applyPorts": [9080], "priority": 10}, id="a port, priority"),
    pytest.param({"spec": {"selector": {"matchLabels": {}}}}, id="every port, no selector"),
    pytest.param({"namespace": "istio-system"}, id="every port, root namespace"),
    pytest.param({"applyPorts": [9080, 15008]}, id="a port and the tunnel's"),
]


@pytest.mark.parametrize("mode", ["DISABLE", "PERMISSIVE", "STRICT"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_filter_is_once_on_each_inbound_path_of_the_selected_ports_and_not_in_the_tunnel(
    shape: dict[str, Any], mode: str
) -> None:
    authentication = peer_authentication(mode)
    without = await renders(authentication)
    found = await renders(authentication, ours(**shape))
    selected = shape.get("applyPorts")
    for proxy in (PLAIN, TUNNELLED, BOUND):
        chains = http_chains(found[proxy.name], selected)
        assert {port_of(each) for each in chains} >= set(selected or (9080, 9081)) - {15008}
        for chain in chains:
            assert chain.names.count(OURS) == 1, (proxy.name, chain)
            assert chain.names[-2:] == [OURS, patches.ROUTER], "next to the router, as ever"
        everywhere = [each for each in found[proxy.name].chains if OURS in each.names]
        assert everywhere == chains, "and nowhere else"
    for proxy in (TUNNELLED, BOUND):
        assert patches.INNER in {
            chain.listener for chain in http_chains(found[proxy.name], selected)
        }
        digest = found[proxy.name].digests[patches.TUNNEL]
        assert digest == without[proxy.name].digests[patches.TUNNEL], "the very same bytes"
    assert found[GATEWAY.name] == without[GATEWAY.name]
    assert found[WAYPOINT.name] == without[WAYPOINT.name]


FIRST = {"position": "First"}


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(FIRST, id="every port"),
        pytest.param({**FIRST, "applyPorts": [9080]}, id="a port"),
        pytest.param({**FIRST, "applyPorts": [9080, 15008]}, id="a port and the tunnel's"),
    ],
)
async def test_filter_that_is_first_is_before_all_others_and_not_in_the_tunnel(
    shape: dict[str, Any],
) -> None:
    theirs = stranger("theirs", name="vendor.example/filter", priority=-5)
    without = await renders(theirs)
    found = await renders(theirs, ours(**shape))
    for proxy in (PLAIN, TUNNELLED, BOUND):
        chains = http_chains(found[proxy.name], shape.get("applyPorts"))
        assert chains
        for chain in chains:
            assert (chain.names[0], chain.names.count(OURS)) == (OURS, 1), (proxy.name, chain)
            assert len(chain.names) > 3, "Istio's own and the stranger's follow"
        everywhere = [each for each in found[proxy.name].chains if OURS in each.names]
        assert everywhere == chains, "and nowhere else"
    for proxy in (TUNNELLED, BOUND):
        digest = found[proxy.name].digests[patches.TUNNEL]
        assert digest == without[proxy.name].digests[patches.TUNNEL], "the very same bytes"


async def test_of_several_filters_that_are_first_the_highest_priority_is_first() -> None:
    filters = [ours(name=f"f-{number}", priority=number, **FIRST) for number in (2, 0, 1)]
    found = await renders(*filters)
    for chain in http_chains(found[PLAIN.name], None):
        assert chain.names[:3] == [f"{WASM}/f-{number}" for number in (2, 1, 0)]


@pytest.mark.parametrize("shape", SHAPES)
async def test_listeners_without_a_tunnel_are_as_before(shape: dict[str, Any]) -> None:
    wanted = ours(**shape)
    before, after = await renders(as_before(wanted)), await renders(wanted)
    assert after[PLAIN.name] == before[PLAIN.name]
    assert after[GATEWAY.name] == before[GATEWAY.name]
    off = {"PILOT_ENABLE_AMBIENT": "false"}
    before, after = await renders(as_before(wanted), flags=off), await renders(wanted, flags=off)
    assert patches.TUNNEL not in after[TUNNELLED.name].digests
    assert after == before


async def test_filter_is_not_in_the_tunnel_of_an_istiod_that_removes_before_it_inserts() -> None:
    wanted = ours()
    kept = wanted["spec"]["configPatches"]
    # Such an istiod finds no filter with the name that our patch removes.
    wanted["spec"]["configPatches"] = [one for one in kept if one["patch"]["operation"] != "REMOVE"]
    assert len(wanted["spec"]["configPatches"]) == len(kept) - 1
    before, after = await renders(stranger()), await renders(stranger(), wanted)
    (theirs,) = before[TUNNELLED.name].of(patches.TUNNEL)
    (tunnel,) = after[TUNNELLED.name].of(patches.TUNNEL)
    cors = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"
    assert [one["typedConfig"] for one in (tunnel.filters or ())[:2]] == [{"@type": cors}] * 2
    assert tunnel.names[2:] == theirs.names
    for chain in http_chains(after[TUNNELLED.name], None):
        assert chain.names[-2:] == [OURS, patches.ROUTER]


@pytest.mark.parametrize("where", [{}, {"name": patches.TUNNEL}, {"portNumber": 9080}])
@pytest.mark.parametrize(
    "shape", [{}, {"applyPorts": [9080]}, FIRST], ids=["every port", "a port", "first"]
)
async def test_filters_of_others_keep_their_place(
    where: dict[str, Any], shape: dict[str, Any]
) -> None:
    theirs = [
        stranger(f"{kind}-{number}", name=name, priority=priority, listener=where)
        for kind, name in (("wasm", WASM), ("other", "vendor.example/filter"))
        for number, priority in enumerate((-5, 0, 5))
    ]
    alone = await renders(*theirs)
    both = await renders(*theirs, ours(**shape))
    for proxy in PROXIES:
        for chain, before in zip(both[proxy.name].chains, alone[proxy.name].chains, strict=True):
            assert [one for one in chain.names if one != OURS] == before.names
    in_tunnel = next(each.names for each in both[TUNNELLED.name].of(patches.TUNNEL))
    assert sum("wasm-" in one for one in in_tunnel) == (0 if "portNumber" in where else 3)
    digests = [each[TUNNELLED.name].digests[patches.TUNNEL] for each in (alone, both)]
    assert digests[0] == digests[1], "nothing of the tunnel changes"


@pytest.mark.parametrize("shape", [{}, {"applyPorts": [9080]}], ids=["every port", "a port"])
async def test_two_filters_on_a_workload_are_each_there_once_in_the_order_of_priority(
    shape: dict[str, Any],
) -> None:
    first, second = f"{WASM}/first", f"{WASM}/second"
    for others in ({}, {"applyPorts": [9080]}):
        found = await renders(
            ours(name="second", priority=10, **shape),
            stranger(priority=5),
            ours(name="first", priority=-10, **others),
            stranger("late", name="vendor.example/filter", priority=20),
        )
        for proxy in (PLAIN, TUNNELLED, BOUND):
            for chain in http_chains(found[proxy.name], [9080]):
                placed = [one for one in chain.names if one in {first, second}]
                assert placed == [first, second]
        tunnel = [each.names for each in found[TUNNELLED.name].of(patches.TUNNEL)]
        assert first not in tunnel[0]
        assert second not in tunnel[0]
        assert f"{WASM}/stranger" in tunnel[0]


@pytest.mark.parametrize("shape", [{}, {"applyPorts": [80]}], ids=["every port", "a port"])
async def test_gateway_has_the_filter_once_and_no_sidecar_has(shape: dict[str, Any]) -> None:
    without = await renders()
    found = await renders(ours(context="GATEWAY", **shape))
    chains = [each for each in found[GATEWAY.name].chains if each.filters]
    assert [each.names.count(OURS) for each in chains] == [1]
    for proxy in (PLAIN, TUNNELLED, BOUND, WAYPOINT):
        assert found[proxy.name] == without[proxy.name]


@pytest.mark.parametrize("shape", [{}, {"applyPorts": [8081]}], ids=["every port", "a port"])
async def test_outbound_filter_is_on_outbound_listeners_only(shape: dict[str, Any]) -> None:
    without = await renders()
    found = await renders(ours(context="SIDECAR_OUTBOUND", **shape))
    for proxy in (PLAIN, TUNNELLED, BOUND):
        having = {each.listener for each in found[proxy.name].chains if OURS in each.names}
        assert any(name.endswith("_8081") for name in having)
        for name, digest in found[proxy.name].digests.items():
            if name not in having:
                assert digest == without[proxy.name].digests[name]
        assert not having & {"virtualInbound", patches.TUNNEL, patches.INNER}
        assert all(each.names.count(OURS) <= 1 for each in found[proxy.name].chains)


async def test_gateway_that_filters_its_clusters_has_wasmers() -> None:
    filtering = AMBIENT | {"PILOT_FILTER_GATEWAY_CLUSTER_CONFIG": "true"}
    wanted = ours(context="GATEWAY")
    found = await renders(wanted, flags=filtering)
    assert [OURS in each.names for each in found[GATEWAY.name].chains if each.filters] == [True]
    assert CLUSTER in found[GATEWAY.name].clusters
    without = copy.deepcopy(wanted)
    del without["metadata"]["annotations"][REFERENCED_SERVICES]
    assert CLUSTER not in (await renders(without, flags=filtering))[GATEWAY.name].clusters
    # If gateways have every cluster, it changes nothing.
    assert (await renders(wanted))[GATEWAY.name] == (await renders(without))[GATEWAY.name]


_SHAPES: list[dict[str, Any]] = [each.values[0] for each in SHAPES]
CONTEXTS = ("SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY")
_WARNINGS: list[str] = []


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("shape", SHAPES)
async def test_istiods_webhook_warns_of_nothing_but_that_it_is_an_envoyfilter(
    shape: dict[str, Any], context: str
) -> None:
    name = f"{context.lower().replace('_', '-')}-{_SHAPES.index(shape)}"
    (warning,) = [one for one in await _warnings() if one.startswith(f"EnvoyFilter {name}: ")]
    text = warning.removeprefix(f"EnvoyFilter {name}: ")
    assert text.startswith("EnvoyFilter exposes internal implementation")
    assert "\n" not in warning


async def _warnings() -> Sequence[str]:
    """The webhook's verdict on every form in every context."""
    if not _WARNINGS:
        documents = [
            ours(
                context=context,
                **{**shape, "name": f"{context.lower().replace('_', '-')}-{number}"},
            )
            for context in CONTEXTS
            for number, shape in enumerate(_SHAPES)
        ]
        _WARNINGS.extend((await listeners.rendering(documents, [])).warnings)
        assert len(_WARNINGS) == len(documents)
    return _WARNINGS
