"""`wasmc convert`: istiod puts a WasmPlugin and the AutoWasms converted from it into the same filter chains, for every kind of proxy.

`test_convert_mesh.py` compares the effect on requests, of one sidecar.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from autowasm.api.envoyfilter import render
from autowasm.api.patches import ROUTER
from autowasm.api.validation import parse
from autowasm.convert.conversion import Batch
from autowasm.convert.dispatch import converter_of
from autowasm.settings import EnvoyFetch
from tests.e2e.test_rendered_listeners import GATEWAY, LABELS, WASM, renders
from tests.fakes.autowasms import record
from tests.parts.listeners import Chain, Rendered

PLUGIN = "extensions.istio.io/trafficextension/default.hello"
RBAC = "envoy.filters.http.rbac"
SIDECARS: dict[str, Any] = {"selector": {"matchLabels": LABELS}}
GATEWAYS: dict[str, Any] = {"selector": {"matchLabels": {"gw": "true"}}}
POLICY = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "some", "namespace": "default"},
    "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/no"]}}]}]},
}

Document = dict[str, Any]
Where = tuple[str, str, str, int | None, int]


def plugin(kind: str = "WasmPlugin", **spec: Any) -> Document:
    module = {"url": "oci://r.example/a:v1"}
    return {
        "apiVersion": "extensions.istio.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": "hello", "namespace": "default"},
        "spec": spec | (module if kind == "WasmPlugin" else {"wasm": module}),
    }


def published(source: Document, *, gateway: bool) -> list[Document]:
    """The EnvoyFilters of the AutoWasms converted from the object."""
    converter = converter_of(source)
    assert converter is not None
    found = converter(source, Batch([source], gateway=gateway))
    assert not found.losses
    for number, document in enumerate(found.autowasms):
        document["metadata"].update(uid=f"{number}-1", generation=1)
    return [render(parse(one), record(), EnvoyFetch()) for one in found.autowasms]


def chains_with(prefix: str, proxies: Mapping[str, Rendered]) -> dict[Where, Chain]:
    """The chains with a filter of this name, each of which has it once."""
    found = {}
    for proxy, rendered in proxies.items():
        for number, chain in enumerate(rendered.chains):
            if count := sum(name.startswith(prefix) for name in chain.names):
                assert count == 1, (proxy, chain)
                found[proxy, chain.listener, chain.name, chain.port, number] = chain
    return found


def index(chain: Chain, prefix: str) -> int:
    return next(i for i, name in enumerate(chain.names) if name.startswith(prefix))


@pytest.mark.parametrize("kind", ["WasmPlugin", "TrafficExtension"])
@pytest.mark.parametrize(
    ("spec", "gateway"),
    [
        pytest.param(SIDECARS, False, id="both directions"),
        pytest.param({**SIDECARS, "match": [{"mode": "SERVER"}]}, False, id="inbound"),
        pytest.param({**SIDECARS, "match": [{"mode": "CLIENT"}]}, False, id="outbound"),
        pytest.param(
            {**SIDECARS, "match": [{"mode": "SERVER", "ports": [{"number": 9080}]}]},
            False,
            id="an inbound port",
        ),
        pytest.param(
            {**SIDECARS, "match": [{"mode": "CLIENT", "ports": [{"number": 9081}]}]},
            False,
            id="an outbound port",
        ),
        pytest.param(
            {**SIDECARS, "match": [{"ports": [{"number": 9080}]}, {"mode": "SERVER", "ports": [{"number": 9081}]}]},
            False,
            id="ports by direction",
        ),
        pytest.param({}, False, id="no selector"),
        pytest.param(GATEWAYS, True, id="a gateway"),
        pytest.param({**GATEWAYS, "match": [{"ports": [{"number": 80}]}]}, True, id="a gateway's port"),
    ],
)  # fmt: skip
async def test_converted_filter_is_in_the_same_chains(
    spec: Document, gateway: bool, kind: str
) -> None:
    source = plugin(kind, **spec)
    before = chains_with(PLUGIN, await renders(source))
    after = chains_with(f"{WASM}/hello", await renders(*published(source, gateway=gateway)))
    if spec.get("selector") == SIDECARS["selector"]:
        # The gateway has the labels, too. The labels do not show that, and convert assumes sidecars.
        before = {where: chain for where, chain in before.items() if where[0] != GATEWAY.name}
    assert before
    assert after.keys() == before.keys()
    for where, chain in after.items():
        assert chain.names[-1] == ROUTER
        assert index(chain, f"{WASM}/hello") == len(chain.names) - 2, where


async def test_filter_before_authentication_is_before_authorization() -> None:
    source = plugin(**SIDECARS, phase="AUTHN", match=[{"mode": "SERVER"}])
    before = chains_with(PLUGIN, await renders(POLICY, source))
    after = chains_with(f"{WASM}/hello", await renders(POLICY, *published(source, gateway=False)))
    assert after.keys() == before.keys()
    for where, chain in after.items():
        assert index(chain, f"{WASM}/hello") == 0
        assert index(before[where], PLUGIN) < index(before[where], RBAC)
