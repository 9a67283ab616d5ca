"""The two variants of a staged rollout (ADR 39) as istiod renders them: each proxy has the right one, and no other filter changes.

As in `test_rendered_listeners.py`, with istiod's own renderer. Two sidecars of one workload, both with the tunnel of the ambient
profile; `details-b` is the one that the step chose.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from autowasm.api import patches
from autowasm.api.envoyfilter import Variant, staged_plugin_name, variant_of
from autowasm.api.patches import Metadata
from autowasm.api.staged import render
from autowasm.settings import EnvoyFetch
from tests.e2e import test_rendered_listeners as unstaged
from tests.fakes.autowasms import autowasm, record
from tests.parts import listeners
from tests.parts.listeners import Chain, Proxy, Rendered

Document = Mapping[str, Any]

NAME = "autowasm/default.test"


def sidecar(name: str, address: str, node: str, **labels: str) -> Proxy:
    return Proxy(
        name=name,
        address=address,
        labels={**unstaged.LABELS, **labels},
        metadata={
            "ENABLE_HBONE": "true",
            "NAME": name,
            "NAMESPACE": "default",
            "NODE_NAME": node,
            "WORKLOAD_NAME": name.rpartition("-")[0],
        },
    )


A = sidecar("details-v1-a", "10.0.0.1", "node-1")
B = sidecar("details-v2-b", "10.0.0.2", "node-2")
BOUND = sidecar("details-v2-bound", unstaged.BOUND.address, "node-2", bound="true")
GATEWAY_A = Proxy(
    name="gateway-a",
    type="router",
    address="10.0.0.4",
    labels={**unstaged.LABELS, "gw": "true"},
    metadata={"NAME": "gateway-a", "NAMESPACE": "default"},
)
GATEWAY_B = Proxy(
    name="gateway-b",
    type="router",
    address="10.0.0.6",
    labels={**unstaged.LABELS, "gw": "true"},
    metadata={"NAME": "gateway-b", "NAMESPACE": "default"},
)
SIDECARS = (A, B, BOUND)
PROXIES = (*SIDECARS, GATEWAY_A, GATEWAY_B)
ONLY_B: tuple[Metadata, ...] = ({"NAME": B.name, "NAMESPACE": "default"},)


def stable(**fields: Any) -> Variant:
    return variant_of(autowasm(**fields), record())


def target(**fields: Any) -> Variant:
    return variant_of(autowasm(**fields), record(sha256="b" * 64))


def plugin(variant: Variant) -> str:
    """The plugin as in `Chain.names`."""
    return f"{NAME}/{staged_plugin_name(autowasm(), variant)}"


def staged(
    old: Variant | None,
    new: Variant | None,
    proxies: Sequence[Metadata] | None = ONLY_B,
    **fields: Any,
) -> dict[str, Any]:
    return render(autowasm(**fields), EnvoyFetch(), stable=old, target=new, proxies=proxies)


async def renders(*documents: Document) -> Mapping[str, Rendered]:
    return await listeners.rendered([*unstaged.MESH, *documents], PROXIES, flags=unstaged.AMBIENT)


def inbound(rendered: Rendered, port: int) -> list[Chain]:
    return unstaged.http_chains(rendered, [port])


def assert_has(rendered: Rendered, wanted: Variant | None, *, port: int = 9080) -> None:
    """Assert that each inbound chain of the port has the variant once, next to the router; None: no variant."""
    chains = inbound(rendered, port)
    assert {each.listener for each in chains} >= {patches.INNER}
    for chain in chains:
        ours = [one for one in chain.names if one.startswith(NAME)]
        assert ours == ([plugin(wanted)] if wanted is not None else []), chain
        assert chain.names[-1] == patches.ROUTER
        if wanted is not None:
            assert chain.names[-2] == ours[0]


def assert_tunnel_is_untouched(rendered: Rendered, without: Rendered) -> None:
    assert rendered.digests[patches.TUNNEL] == without.digests[patches.TUNNEL]


SHAPES: list[Any] = [
    pytest.param({"applyPorts": [9080]}, id="a port"),
    pytest.param({"applyPorts": [9081, 9080]}, id="two ports"),
    pytest.param({}, id="every port"),
    pytest.param({"applyPorts": [9080, 15008]}, id="a port and the tunnel's"),
]


@pytest.mark.parametrize("shape", SHAPES)
async def test_only_the_chosen_pod_has_the_new_filter_and_the_filter_of_another_vendor_stays(
    shape: dict[str, Any],
) -> None:
    # Its filters have the name of the reference, before and after ours.
    theirs = [unstaged.stranger(f"wasm-{n}", priority=n) for n in (-5, 5)]
    without = await renders(*theirs)
    old, new = stable(**shape), target(**shape)
    found = await renders(*theirs, staged(old, new, priority=0))
    for proxy, wanted in ((A, old), (B, new), (BOUND, old)):
        rendered = found[proxy.name]
        for chain in inbound(rendered, 9080):
            assert [one for one in chain.names if one.startswith(NAME)] == [plugin(wanted)]
        for chain, before in zip(rendered.chains, without[proxy.name].chains, strict=True):
            assert [one for one in chain.names if not one.startswith(NAME)] == before.names
        assert_tunnel_is_untouched(rendered, without[proxy.name])
    for gateway in (GATEWAY_A, GATEWAY_B):
        assert found[gateway.name] == without[gateway.name]


@pytest.mark.parametrize("shape", SHAPES)
async def test_other_pods_have_the_same_bytes_before_during_and_after_an_aborted_step(
    shape: dict[str, Any],
) -> None:
    old, new = stable(**shape), target(**shape)
    before, during = await renders(staged(old, None)), await renders(staged(old, new))
    after = await renders(staged(new, None))
    assert during[A.name] == before[A.name]
    assert during[BOUND.name] == before[BOUND.name]
    assert during[B.name] == after[B.name], "promotion changes nothing for it"
    everywhere = await renders(staged(old, new, None))
    assert everywhere == after, "the last step and the end of the rollout"


@pytest.mark.parametrize(
    ("old_shape", "new_shape"),
    [
        ({"applyPorts": [9080]}, {"applyPorts": [9081]}),
        ({"applyPorts": [9080]}, {}),
        ({}, {"applyPorts": [9081]}),
        ({"applyPorts": [9080, 9081]}, {"applyPorts": [9081, 15008]}),
    ],
)
async def test_other_ports_are_those_of_the_chosen_pod_only(
    old_shape: dict[str, Any], new_shape: dict[str, Any]
) -> None:
    without = await renders()
    old, new = stable(**old_shape), target(**new_shape)
    before, found = await renders(staged(old, None)), await renders(staged(old, new))
    after = await renders(staged(new, None))
    assert found[A.name] == before[A.name]
    assert found[B.name] == after[B.name]
    for port in (9080, 9081):
        assert_has(found[A.name], old if port in (old.ports or (port,)) else None, port=port)
        assert_has(found[B.name], new if port in (new.ports or (port,)) else None, port=port)
    for proxy in SIDECARS:
        assert_tunnel_is_untouched(found[proxy.name], without[proxy.name])
    assert await renders(staged(old, new, None)) == after


@pytest.mark.parametrize("shape", SHAPES)
async def test_first_filter_is_in_the_chosen_pod_only(shape: dict[str, Any]) -> None:
    without = await renders()
    new = target(**shape)
    found = await renders(staged(None, new))
    assert_has(found[B.name], new)
    for proxy in (A, BOUND, GATEWAY_A, GATEWAY_B):
        assert found[proxy.name] == without[proxy.name]
    assert_tunnel_is_untouched(found[B.name], without[B.name])
    assert await renders(staged(None, new, ())) == without
    assert await renders(staged(None, new, None)) == await renders(staged(new, None))


@pytest.mark.parametrize(
    ("metadata", "chosen"),
    [
        ({"NODE_NAME": "node-2"}, {B.name, BOUND.name}),
        ({"WORKLOAD_NAME": "details-v1", "NAMESPACE": "default"}, {A.name}),
        ({"NAME": B.name, "NAMESPACE": "other"}, set[str]()),
    ],
    ids=["node", "workload", "another namespace"],
)
async def test_step_can_name_a_node_or_a_workload(metadata: Metadata, chosen: set[str]) -> None:
    old, new = stable(), target()
    found = await renders(staged(old, new, (metadata,)))
    for proxy in SIDECARS:
        assert_has(found[proxy.name], new if proxy.name in chosen else old)


async def test_two_rollouts_on_one_port_do_not_touch_each_other() -> None:
    other = autowasm(name="other", priority=-10)
    theirs = render(
        other,
        EnvoyFetch(),
        stable=variant_of(other, record(sha256="c" * 64)),
        target=variant_of(other, record(sha256="d" * 64)),
        proxies=({"NAME": A.name, "NAMESPACE": "default"},),
    )
    old, new = stable(), target()
    found = await renders(staged(old, new, priority=10), theirs)
    for proxy, wanted, module in ((A, old, "d"), (B, new, "c")):
        digest = variant_of(other, record(sha256=module * 64)).digest
        for chain in inbound(found[proxy.name], 9080):
            placed = [one for one in chain.names if one.startswith("autowasm/")]
            assert placed == [f"autowasm/default.other/other-{digest}", plugin(wanted)]


@pytest.mark.parametrize("shape", [{}, {"applyPorts": [80]}], ids=["every port", "a port"])
async def test_gateways_are_chosen_by_name_too(shape: dict[str, Any]) -> None:
    without = await renders()
    old, new = stable(context="GATEWAY", **shape), target(context="GATEWAY", **shape)
    found = await renders(
        staged(old, new, ({"NAME": GATEWAY_B.name, "NAMESPACE": "default"},), context="GATEWAY")
    )
    for proxy, wanted in ((GATEWAY_A, old), (GATEWAY_B, new)):
        (chain,) = [each for each in found[proxy.name].chains if each.filters]
        assert [one for one in chain.names if one.startswith(NAME)] == [plugin(wanted)]
    for proxy in SIDECARS:
        assert found[proxy.name] == without[proxy.name]


async def test_new_filter_leaves_the_tunnel_of_an_istiod_that_removes_before_it_inserts() -> None:
    wanted = staged(stable(), target())
    kept = wanted["spec"]["configPatches"]
    # Such an istiod finds no filter with the name that our patch removes.
    wanted["spec"]["configPatches"] = [one for one in kept if one["patch"]["operation"] != "REMOVE"]
    without, found = await renders(), await renders(wanted)
    for proxy, variant in ((A, stable()), (B, target())):
        (before,) = without[proxy.name].of(patches.TUNNEL)
        (tunnel,) = found[proxy.name].of(patches.TUNNEL)
        assert tunnel.names[2:] == before.names
        assert not [one for one in tunnel.names if one.startswith(NAME)]
        assert_has(found[proxy.name], variant)


async def test_istiods_webhook_warns_of_nothing_but_that_it_is_an_envoyfilter() -> None:
    documents = [
        staged(stable(), target(), name="same"),
        staged(stable(), target(applyPorts=[9080]), name="moved"),
        staged(None, target(), name="first"),
        staged(stable(), None, name="alone"),
        staged(None, None, name="none"),
    ]
    warnings = (await listeners.rendering(documents, [])).warnings
    assert len(warnings) == len(documents)
    for warning in warnings:
        assert "EnvoyFilter exposes internal implementation" in warning
        assert "\n" not in warning
