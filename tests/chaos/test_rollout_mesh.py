"""Staged rollouts on real parts: kube-apiserver, istiod, eight Envoys with Istio's bootstrap, six of them selected, under load."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests.parts import ports, wasmer, wire
from tests.parts.clients import ClientError
from tests.parts.controlplane import ControlPlane
from tests.parts.installation import autowasms, envoyfilters
from tests.parts.rollouts import (
    SELECTED,
    StagedMesh,
    StagedSidecar,
    described,
    staged_mesh,
    target_of,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
]

RESTORED_WITHIN = 2.0
"""Seconds from the verdict until the previous filter is back."""
_WITHOUT_PREFLIGHT = {"wasm.tcm.io/preflight": "off"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mesh(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[StagedMesh]:
    arguments = (
        "--allow-preflight-override",
        "--lease-duration=3s",
        "--renew-deadline=2s",
        "--retry-period=500ms",
    )
    directory = tmp_path_factory.mktemp("rollout")
    async with staged_mesh(directory, plane=control_plane, arguments=arguments) as found:
        found.may_die = True
        yield found


async def settle_on(mesh: StagedMesh, filter_: str, **fields: Any) -> str:
    """All matched Pods have this filter. Returns the plugin's name."""
    image = await mesh.image(filter_)
    await mesh.apply(mesh.staged(image, annotations={"wasm.tcm.io/rollout": "promote"}, **fields))
    plugin = target_of(await mesh.wait_rollout("Succeeded"))
    await mesh.only_on(plugin, mesh.names())
    return plugin


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[None]:
    """Run endless work beside the body. Raises the work's exception."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            raise task.exception() or AssertionError


@dataclass
class Watched:
    """The states of the Pods during the rollout, in order, without repetitions."""

    counts: list[int] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    async def until(self, count: int) -> None:
        """Return once this many Pods were seen with the new filter. Raises TimeoutError."""
        async with asyncio.timeout(60):
            while self.counts[-1:] != [count]:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def watched(mesh: StagedMesh, old: str) -> AsyncIterator[Watched]:
    """Compare the config_dump of all Envoys with the status, repeatedly."""
    found = Watched()

    async def watch() -> None:
        while True:
            before = (await mesh.get())["status"]["rollout"]
            have = await asyncio.gather(*(one.plugins() for one in mesh.matched))
            after = (await mesh.get())["status"]["rollout"]
            new = {
                one.name
                for one, plugins in zip(mesh.matched, have, strict=True)
                if plugins and old not in plugins
            }
            if found.counts[-1:] != [len(new)]:
                found.counts.append(len(new))
            found.violations += [f"{plugins}" for plugins in have if len(plugins) != 1]
            is_staged = before["phase"] == after["phase"] == "Progressing"
            if is_staged and before["step"] == after["step"] < after["steps"]:
                chosen = {one["name"] for one in after["pods"]}
                if not new <= chosen:
                    found.violations.append(f"step {after['step']}: {new} besides {chosen}")
            await asyncio.sleep(0.1)

    async with meanwhile(watch(), name="watch Envoys"):
        yield found


async def downloads(mesh: StagedMesh) -> int:
    """The modules that wasmer has sent to sidecars since it started."""
    answer = await wire.get(f"http://{mesh.wasmer.host}/seen")
    return int(json.loads(answer.body)["downloads"])


@asynccontextmanager
async def downloads_watched(mesh: StagedMesh) -> AsyncIterator[dict[int, int]]:
    """The maximum number of downloads since the beginning that was seen in each step of a rollout."""
    before, most = await downloads(mesh), dict[int, int]()

    async def watch() -> None:
        while True:
            state = await mesh.rollout()
            count = await downloads(mesh) - before
            later = await mesh.rollout()
            is_staged = state["phase"] == later["phase"] == "Progressing"
            if is_staged and state["step"] == later["step"]:
                most[later["step"]] = max(count, most.get(later["step"], 0))
            await asyncio.sleep(0.05)

    async with meanwhile(watch(), name="count downloads"):
        yield most


async def test_good_filter_reaches_one_three_and_all_pods_without_a_failed_request(
    mesh: StagedMesh,
) -> None:
    old = await settle_on(mesh, "echo")
    untouched = await asyncio.gather(*(one.listener_version() for one in mesh.others))
    image = await mesh.image("fail-on-request", tag="new", note="no Envoy has it yet")
    async with mesh.load() as reports, watched(mesh, old) as seen, downloads_watched(mesh) as sent:
        await seen.until(0)
        await mesh.apply(mesh.staged(image))
        found = await mesh.wait_rollout("Succeeded")
        await mesh.wait_phase("Synced")
        plugin = target_of(found)
        assert await mesh.with_plugin(plugin) == mesh.names()
        await seen.until(6)
    # Envoys change one after the other within a step.
    assert seen.counts == sorted(set(seen.counts)), described(found)
    assert {0, 1, 3, 6} <= set(seen.counts), described(found)
    assert not seen.violations
    # A sidecar has one port and one filter chain. An Envoy whose listener changes while it fetches makes another request.
    assert sent.keys() == {1, 2, 3}
    assert sent[1] in {1, 2}, sent
    assert sent[2] in {3, 4}, sent
    assert sent[3] in {6, 7}, sent
    for report in reports.values():
        assert report.failed == 0, report
        assert report.total > 100
    assert await asyncio.gather(*(one.listener_version() for one in mesh.others)) == untouched
    verdict = found["status"]["rollout"]["verdict"]
    assert (verdict["pods"], verdict["proven"]) == (6, 6)
    each = {one["pod"]: one.get("requests", 0) for one in verdict["perPod"]}
    assert each.keys() == {f"default/{name}" for name in mesh.names()}
    assert verdict["requests"] == sum(each.values()) > 0


@contextmanager
def traps_in_one_percent(sidecars: list[StagedSidecar]) -> Iterator[None]:
    """Load in which each hundredth request makes `fail-on-request` trap, and no other filter."""

    async def send(host: str) -> None:
        count = 0
        while True:
            count += 1
            headers = {"x-fail": "request"} if count % 100 == 0 else {}
            await wire.get(f"http://{host}/", headers=headers)
            await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(send(one.host), name=f"load {one.name}") for one in sidecars]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def test_module_that_traps_stops_at_the_first_pod_and_the_previous_filter_is_back_at_once(
    mesh: StagedMesh,
) -> None:
    old = await settle_on(mesh, "echo")
    versions = {one.name: await one.listener_version() for one in mesh.matched}
    with traps_in_one_percent(mesh.matched):
        await asyncio.sleep(1)
        await mesh.apply(mesh.staged(await mesh.image("fail-on-request"), pause="20s"))
        # An aborted rollout has no Pods, and this one is aborted soon.
        found = await mesh.wait_rollout("Progressing", step=1)
        (canary,) = found["status"]["rollout"]["pods"]
        found = await mesh.wait_rollout("Aborted")
        await mesh.only_on(old, mesh.names(), timeout=RESTORED_WITHIN)
    rollout = found["status"]["rollout"]
    assert (rollout["step"], rollout["reason"]) == (1, "FailureRatio"), described(found)
    found = await mesh.wait_phase("Degraded")
    ready = next(one for one in found["status"]["conditions"] if one["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "RolloutFailed")
    assert f"default/{canary['name']}" in ready["message"]
    assert "%" in ready["message"]
    now = {one.name: await one.listener_version() for one in mesh.matched}
    assert {name for name in now if now[name] != versions[name]} == {canary["name"]}
    ok = await wire.get(f"http://{mesh.sidecar(canary['name']).host}/")
    assert ok.status == 200


async def test_module_that_refuses_its_configuration_is_found_by_its_missing_vms(
    mesh: StagedMesh,
) -> None:
    old = await settle_on(mesh, "echo")
    # An Envoy that has the module rejects the listener: see the next test.
    image = await mesh.image("refuse-config", tag="refuse", note="no Envoy has it yet")
    await mesh.apply(mesh.staged(image, pluginConfig="refuse", annotations=_WITHOUT_PREFLIGHT))
    found = await mesh.wait_rollout("Aborted")
    assert found["status"]["rollout"]["reason"] == "ConfigurationRefused", described(found)
    assert found["status"]["rollout"]["step"] == 1
    await serve_again(mesh, old)


async def test_configuration_that_an_envoy_with_the_module_rejects_is_named_at_the_deadline(
    mesh: StagedMesh,
) -> None:
    old = await settle_on(mesh, "refuse-config")
    image = await mesh.image("refuse-config")
    refused = mesh.staged(
        image, pluginConfig="refuse", deadline="10s", annotations=_WITHOUT_PREFLIGHT
    )
    async with mesh.load() as reports:
        await mesh.apply(refused)
        found = await mesh.wait_rollout("Aborted")
        await serve_again(mesh, old)
    rollout = found["status"]["rollout"]
    assert (rollout["step"], rollout["reason"]) == (1, "DeadlineExceeded"), described(found)
    assert "rejected a listener update" in rollout["message"]
    assert "if the module refuses its configuration" in rollout["message"]
    for report in reports.values():
        assert report.failed == 0, report


async def serve_again(mesh: StagedMesh, plugin: str) -> None:
    """All matched Pods have this filter again, and the status says that the rollout failed."""
    await mesh.only_on(plugin, mesh.names(), timeout=10)
    await mesh.wait_phase("Degraded")


async def test_successor_of_a_killed_leader_continues_the_rollout_from_every_state(
    mesh: StagedMesh,
) -> None:
    old = await settle_on(mesh, "echo")
    killed: list[tuple[Any, ...]] = []

    async def kill_in_each_state() -> None:
        while True:
            rollout = await mesh.rollout()
            state = (rollout["phase"], rollout.get("step"), rollout.get("reason"))
            if rollout["target"]["generation"] == generation and state not in killed:
                killed.append(state)
                await mesh.wasmer.process.kill()
                await mesh.wasmer.start()
            if state[0] == "Succeeded" and state in killed:
                return
            await asyncio.sleep(0.01)

    async with mesh.load() as reports, watched(mesh, old) as seen:
        await seen.until(0)
        await mesh.apply(mesh.staged(await mesh.image("fail-on-request"), pause="2s"))
        generation = (await mesh.get())["metadata"]["generation"]
        async with asyncio.timeout(280):
            await kill_in_each_state()
        found = await mesh.wait_rollout("Succeeded")
        await mesh.wait_phase("Synced")
        await seen.until(6)
    assert {state[:2] for state in killed} == {
        ("Progressing", 1),
        ("Progressing", 2),
        ("Progressing", 3),
        ("Succeeded", 3),
    }
    assert {"NotPublished", "Pause"} <= {state[2] for state in killed}
    # Envoys change one after the other within a step.
    assert seen.counts == sorted(set(seen.counts)), described(found)
    assert {0, 1, 3, 6} <= set(seen.counts), described(found)
    assert not seen.violations
    assert await mesh.with_plugin(target_of(found)) == mesh.names()
    for report in reports.values():
        assert report.failed == 0, report


async def test_successor_of_a_leader_that_was_killed_at_its_verdict_restores_the_filter(
    mesh: StagedMesh,
) -> None:
    old = await settle_on(mesh, "echo")
    with traps_in_one_percent(mesh.matched):
        await mesh.apply(mesh.staged(await mesh.image("fail-on-request"), pause="20s"))
        await mesh.wait_rollout("Aborted")
        await mesh.wasmer.process.kill()
        await mesh.wasmer.start()
        await mesh.only_on(old, mesh.names())
    found = await mesh.wait_phase("Degraded")
    assert found["status"]["rollout"]["phase"] == "Aborted", described(found)
    await mesh.wasmer.process.kill()
    await mesh.wasmer.start()
    await asyncio.sleep(0)
    position = await mesh.audit.position()
    image = await mesh.image("echo", tag="later")
    await mesh.apply(mesh.staged(image, name="later", annotations={}))
    await mesh.wait_rollout("Succeeded", name="later", timeout=30)
    mine = [one for one in await mesh.writes(position) if one.name == "test"]
    assert not [one for one in mine if one.resource == "envoyfilters"], "the verdict stays"
    await mesh.cluster.request("DELETE", autowasms("default", "later"))


async def command(mesh: StagedMesh, verb: str, name: str = "test") -> str:
    """Write the rollout annotation; returns its value, which is unique for each command."""
    version = (await mesh.get(name))["metadata"]["resourceVersion"]
    value = f"{verb} after {version}"
    body = {"metadata": {"annotations": {"wasm.tcm.io/rollout": value}}}
    await mesh.cluster.request("PATCH", autowasms("default", name), body=body)
    return value


@asynccontextmanager
async def killed_leader(mesh: StagedMesh) -> AsyncIterator[None]:
    """Run the body without a leader; a successor starts at the end."""
    await mesh.wasmer.process.kill()
    try:
        yield
    finally:
        await mesh.wasmer.start()


async def looked(mesh: StagedMesh) -> None:
    """The leader has processed all objects: an object that is newer than the leader has its filter."""
    await mesh.apply(mesh.staged(await mesh.image("echo"), name="later", pause="1s"))
    await mesh.wait_rollout("Succeeded", name="later", timeout=60)
    await mesh.cluster.request("DELETE", autowasms("default", "later"))
    async with asyncio.timeout(30):
        while any(["later" in str(await one.plugins()) for one in mesh.matched]):
            await asyncio.sleep(0.1)


async def test_successor_carries_out_each_command_that_came_while_there_was_no_leader(
    mesh: StagedMesh,
) -> None:
    old = await settle_on(mesh, "echo")

    async def rollout(phase: str, *, step: int, has: int, given: str = "promote") -> set[str]:
        found = await mesh.wait_rollout(phase, step=step)
        state = found["status"]["rollout"]
        assert state["command"] == given, described(found)
        chosen = {one["name"] for one in state.get("pods", ())}
        assert len(chosen) == has, described(found)
        return chosen

    async with mesh.load() as reports:
        await mesh.apply(mesh.staged(await mesh.image("fail-on-request"), pause="1m"))
        chosen = await rollout("Progressing", step=1, has=1)
        new = target_of(await mesh.get())
        await mesh.only_on(new, chosen)

        async with killed_leader(mesh):
            given = await command(mesh, "pause")
        assert await rollout("Paused", step=1, has=1, given=given) == chosen
        async with killed_leader(mesh):  # while it is paused
            pass
        await looked(mesh)
        assert await rollout("Paused", step=1, has=1, given=given) == chosen
        assert await mesh.with_plugin(new) == chosen
        assert await mesh.with_plugin(old) == mesh.names() - chosen

        async with killed_leader(mesh):
            given = await command(mesh, "resume")
        assert await rollout("Progressing", step=1, has=1, given=given) == chosen
        assert await mesh.with_plugin(new) == chosen

        async with killed_leader(mesh):
            given = await command(mesh, "abort")
        await rollout("Aborted", step=1, has=0, given=given)
        async with killed_leader(mesh):  # possibly before the previous filter is back
            pass
        await mesh.only_on(old, mesh.names())
        await looked(mesh)
        await rollout("Aborted", step=1, has=0, given=given)

        async with killed_leader(mesh):
            given = await command(mesh, "retry")
        chosen = await rollout("Progressing", step=1, has=1, given=given)
        await mesh.only_on(new, chosen)

        async with killed_leader(mesh):
            given = await command(mesh, "promote")
        await rollout("Succeeded", step=3, has=0, given=given)
        await mesh.only_on(new, mesh.names())
    for report in reports.values():
        assert report.failed == 0, report


async def test_successor_of_a_leader_that_was_killed_without_the_previous_filter_holds_the_rollout(
    mesh: StagedMesh,
) -> None:
    old = await settle_on(mesh, "echo")
    await mesh.apply(mesh.staged(await mesh.image("fail-on-request"), pause="1m"))
    await mesh.wait_rollout("Progressing", step=1)
    new = target_of(await mesh.get())
    (canary,) = (await mesh.rollout())["pods"]
    await mesh.only_on(new, {canary["name"]})
    async with killed_leader(mesh):
        # Another client changes the previous filter: no leader remembers it, and it is stored nowhere else.
        document = await mesh.envoyfilter()
        for each in document["spec"]["configPatches"]:
            value = each["patch"].get("value") or {}
            plugin = value.get("typedConfig", {}).get("value", {}).get("config", {})
            if plugin.get("name") == old:
                string = "type.googleapis.com/google.protobuf.StringValue"
                plugin["configuration"] = {"@type": string, "value": "of another client"}
        body = {"spec": document["spec"]}
        await mesh.cluster.request("PATCH", envoyfilters("default", "test"), body=body)
    found = await mesh.wait_rollout("Paused", step=1)
    assert found["status"]["rollout"]["reason"] == "StableLost", described(found)
    async with killed_leader(mesh):
        pass
    await looked(mesh)
    state = await mesh.rollout()
    assert (state["phase"], state["reason"]) == ("Paused", "StableLost"), state
    assert await mesh.with_plugin(new) == {canary["name"]}
    async with killed_leader(mesh):
        await command(mesh, "promote")
    await mesh.wait_rollout("Succeeded")
    await mesh.only_on(new, mesh.names())


async def test_successor_begins_the_first_rollout_of_an_object_that_the_killed_leader_did_not(
    mesh: StagedMesh,
) -> None:
    await settle_on(mesh, "echo")
    async with killed_leader(mesh):
        image = await mesh.image("fail-on-request")
        await mesh.apply(mesh.staged(image, name="first", pause="1s"))
        assert "rollout" not in (await mesh.get("first")).get("status", {})
    found = await mesh.wait_rollout("Progressing", name="first", step=1)
    new = target_of(found, name="first")
    async with killed_leader(mesh):
        pass
    await mesh.wait_rollout("Succeeded", name="first")
    await mesh.only_on(new, mesh.names())
    await mesh.cluster.request("DELETE", autowasms("default", "first"))
    await mesh.only_on(new, set())


async def test_user_follows_and_controls_a_rollout_with_wasmc(mesh: StagedMesh) -> None:
    old = await settle_on(mesh, "echo")
    image = await mesh.image("fail-on-request")

    async def wasmc(*words: str) -> str:
        output = await wasmer.wasmc(mesh.directory, COLUMNS="80").run(
            "rollout", *words, "--kubeconfig", str(mesh.cluster.kubeconfig)
        )
        return output.stdout

    with pytest.raises(ClientError, match="the rollout is Succeeded, so pause changes nothing"):
        await wasmc("pause", "test")
    await mesh.apply(mesh.staged(image, pause="2m"))
    await mesh.wait_rollout("Progressing", step=1)
    assert "step 1 of 3" in await wasmc("status", "test")
    assert "paused" in (await wasmc("pause", "test")).lower()
    (canary,) = (await mesh.rollout())["pods"]
    printed = await wasmc("status", "test")
    assert not [line for line in printed.splitlines() if len(line) > 80]
    assert f": {canary['name']}\n" in printed
    assert "Paused, step 1 of 3" in printed
    await wasmc("resume", "test")
    await mesh.wait_rollout("Progressing", step=1)
    await wasmc("abort", "test")
    with pytest.raises(
        ClientError, match="Aborted: AbortedByCommand: step 1 of 3: aborted by command"
    ):
        await wasmc("status", "test", "-w", "--timeout", "60s")
    await mesh.only_on(old, mesh.names(), timeout=10)
    await wasmc("retry", "test")
    await mesh.wait_rollout("Progressing", step=1)
    watching = asyncio.create_task(wasmc("status", "test", "--watch"))
    await wasmc("promote", "test")
    assert "Succeeded: all Pods have the new filter" in await watching
    await mesh.wait_phase("Synced")
    history = await wasmc("history", "test")
    assert history.index("fail-on-request") < history.index(":echo")


@pytest.mark.parametrize("on_unknown", ["Wait", "Continue"])
async def test_pods_whose_port_is_closed_wait_or_count_by_time(
    mesh: StagedMesh, on_unknown: str
) -> None:
    old = await settle_on(mesh, "echo")
    # As the Pods report it: nothing listens on the port at these addresses.
    closed = {one.name: ports.free_address() for one in mesh.matched}
    for name, address in closed.items():
        await mesh.move_pod(name, address=address)
    try:
        image = await mesh.image("fail-on-request")
        rollout = {"onUnknown": on_unknown}
        await mesh.apply(mesh.staged(image, pause="2s", deadline="8s", rollout=rollout))
        if on_unknown == "Wait":
            found = await mesh.wait_rollout("Aborted")
            state = found["status"]["rollout"]
            assert (state["step"], state["reason"]) == (1, "DeadlineExceeded"), described(found)
            assert "port 15090" in state["message"] or "statistics" in state["message"]
            wanted = old
        else:
            found = await mesh.wait_rollout("Succeeded")
            assert found["status"]["rollout"]["verdict"]["byTime"] is True
            wanted = target_of(found)
        await mesh.only_on(wanted, mesh.names(), timeout=20)
    finally:
        for one in mesh.matched:
            await mesh.move_pod(one.name, address=one.address)


async def test_edits_and_pods_that_come_and_go_during_a_rollout(mesh: StagedMesh) -> None:
    old = await settle_on(mesh, "echo")
    image = await mesh.image("fail-on-request")
    await mesh.apply(mesh.staged(image, pause="2m"))
    await mesh.wait_rollout("Progressing", step=1)
    (canary,) = (await mesh.rollout())["pods"]
    first = target_of(await mesh.get())

    await mesh.only_on(first, {canary["name"]})
    # Its Pod is gone: another Pod replaces it, whose proxy gets the previous filter.
    gone = mesh.sidecar(canary["name"])
    await mesh.remove_pod(gone.name)

    async def replaced() -> set[str]:
        async with asyncio.timeout(30):
            while gone.name in (names := {one["name"] for one in (await mesh.rollout())["pods"]}):
                await asyncio.sleep(0.05)
        return names

    names = await replaced()
    assert len(names) == 1
    await mesh.only_on(first, names)
    await mesh.add_pod(gone.name, {**SELECTED, "pod": gone.name}, address=gone.address)
    # A new Pod has the previous filter.
    added = await mesh.add_staged("added")
    assert old in await added.plugins()
    mesh.matched.append(added)
    # An edit starts a new rollout from the previous filter to the newest one only.
    await mesh.apply(mesh.staged(image, pause="2m", pluginConfig={"edited": True}))
    await mesh.wait_rollout("Progressing", step=1)
    second = target_of(await mesh.get())
    assert second != first
    await mesh.only_on(first, set())
    await mesh.only_on(second, {one["name"] for one in (await mesh.rollout())["pods"]})
    await mesh.remove_pod("added")
    mesh.matched.remove(added)
    # The object is deleted, and both of its filters with it.
    await mesh.cluster.request("DELETE", autowasms("default", "test"))
    async with asyncio.timeout(60):
        while any([await one.plugins() for one in mesh.matched]):
            await asyncio.sleep(0.1)


def vendors_filter() -> dict[str, Any]:
    """A filter of another vendor before ours, with the usual name of Wasm filters."""
    cors = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"
    manager = "envoy.filters.network.http_connection_manager"
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "vendor", "namespace": "default"},
        "spec": {
            "priority": -5,
            "workloadSelector": {"labels": SELECTED},
            "configPatches": [
                {
                    "applyTo": "HTTP_FILTER",
                    "match": {
                        "context": "SIDECAR_INBOUND",
                        "listener": {
                            "filterChain": {
                                "filter": {
                                    "name": manager,
                                    "subFilter": {"name": "envoy.filters.http.router"},
                                }
                            }
                        },
                    },
                    "patch": {
                        "operation": "INSERT_BEFORE",
                        "value": {
                            "name": "envoy.filters.http.wasm",
                            "typed_config": {"@type": cors},
                        },
                    },
                }
            ],
        },
    }


async def test_two_rollouts_on_one_port_change_neither_each_other_nor_other_filters(
    mesh: StagedMesh,
) -> None:
    await settle_on(mesh, "echo")
    vendor = vendors_filter()
    await mesh.apply(vendor)

    async def has_vendors_filter(one: StagedSidecar) -> bool:
        text = json.dumps(await one.inbound())
        return '"envoy.filters.http.wasm"' in text and "http.cors.v3.Cors" in text

    async def everywhere() -> None:
        async with asyncio.timeout(30):
            while not all([await has_vendors_filter(one) for one in mesh.matched]):
                await asyncio.sleep(0.1)

    try:
        await everywhere()
        image, other = await mesh.image("fail-on-request"), await mesh.image("refuse-config")
        async with mesh.load() as reports:
            await mesh.apply(
                mesh.staged(image, priority=10),
                mesh.staged(other, name="other", priority=-10, steps=(2,)),
            )
            until = asyncio.get_running_loop().time() + 75
            while True:
                found = [await mesh.rollout(name) for name in ("test", "other")]
                assert asyncio.get_running_loop().time() < until, found
                assert "Aborted" not in {one.get("phase") for one in found}, found
                for one in mesh.matched:
                    plugins = await one.plugins()
                    assert len([name for name in plugins if name.startswith("test-")]) == 1
                    assert await has_vendors_filter(one)
                if all(one.get("phase") == "Succeeded" for one in found) and found[0]["step"] == 3:
                    break
                await asyncio.sleep(0.2)
            plugins = [target_of(await mesh.get(name), name=name) for name in ("other", "test")]
            async with asyncio.timeout(20):
                while any([await one.plugins() != plugins for one in mesh.matched]):
                    await asyncio.sleep(0.1)
        await everywhere()
        for report in reports.values():
            assert report.failed == 0, report
    finally:
        await mesh.cluster.request("DELETE", autowasms("default", "other"))
        await mesh.cluster.request("DELETE", envoyfilters("default", "vendor"))


async def test_module_of_the_history_is_rolled_out_without_a_registry(mesh: StagedMesh) -> None:
    await settle_on(mesh, "echo")
    echo = await mesh.image("echo")
    await settle_on(mesh, "fail-on-request")
    await mesh.registry.stop()
    try:
        await mesh.apply(mesh.staged(echo, pause="1s"))
        found = await mesh.wait_rollout("Succeeded")
    finally:
        await mesh.registry.start()
    assert found["status"]["rollout"]["verdict"]["proven"] == 6
    assert await mesh.with_plugin(target_of(found)) == mesh.names()
