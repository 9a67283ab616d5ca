"""Proof of load on a real mesh: who fetched the module is in the status, who did not is named, and replicas tell each other."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from tests.parts import provision
from tests.parts.fleet import LABELS, SIDECAR, Fleet, fleet
from tests.parts.installation import Document
from tests.parts.load import Load

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

PODS = "/api/v1/namespaces/default/pods"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    for group in ("kubernetes", "istio", "registry"):
        for part in provision.GROUPS[group]:
            await asyncio.to_thread(part)
    async with fleet(tmp_path_factory.mktemp("proof")) as world:
        yield world


async def _add_pod(world: Fleet, name: str, *, address: str, sidecar: bool = True) -> None:
    """As a kubelet would report it: connections from the sidecar come from 127.0.0.1 here."""
    names = ["main", "istio-proxy"] if sidecar else ["main"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": LABELS},
        "spec": {"containers": [{"name": each, "image": "example.com/x:1"} for each in names]},
    }
    found = await world.cluster.request("POST", PODS, body=pod)
    status = {
        "phase": "Running",
        "startTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "podIP": address,
        "podIPs": [{"ip": address}],
    }
    body = {**found, "status": {**found.get("status", {}), **status}}
    await world.cluster.request("PUT", f"{PODS}/{name}/status", body=body)


async def _loaded(world: Fleet, status: str, reason: str, *, fetched: int) -> Document:
    """The status, once it says so; a change of it may wait for a minute."""
    last: object = None
    try:
        async with asyncio.timeout(150):
            while True:
                found: Document = (await world.installation.get("data"))["status"]
                said = [one for one in found["conditions"] if one["type"] == "Loaded"]
                last = (found.get("pods"), said)
                if (
                    said
                    and (said[0]["status"], said[0]["reason"]) == (status, reason)
                    and found["pods"]["fetched"] == fetched
                ):
                    return found
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise TimeoutError(f"Loaded is not {status}/{reason}/{fetched} but {last}") from error


async def test_who_fetched_is_counted_who_did_not_is_named_and_a_new_leader_knows_it(
    world: Fleet,
) -> None:
    await _add_pod(world, "proxy", address="127.0.0.1")
    await _add_pod(world, "bare", address="10.9.9.9", sidecar=False)
    module = world.module("data")
    await world.apply("data", module=module)
    await Load(f"{SIDECAR}:{world.port}", header="hello").wait_for("data-1", timeout=90)
    found = await _loaded(world, "False", "NotInjected", fetched=1)
    assert (found["pods"]["matched"], found["pods"]["injected"]) == (2, 1)
    (missing,) = found["pods"]["missing"]
    assert (missing["namespace"], missing["name"]) == ("default", "bare")
    assert missing["reason"] == "NotInjected"
    text = next(one["message"] for one in found["conditions"] if one["type"] == "Loaded")
    assert text.startswith("1 of 1 sidecars fetched the module; 1 of 2 Pods not known to have it")
    assert "default/bare has no sidecar" in text
    assert found["phase"] == "Synced", "the proof of load changes no phase"

    await world.cluster.request("DELETE", f"{PODS}/bare?gracePeriodSeconds=0")
    found = await _loaded(world, "True", "Fetched", fetched=1)
    assert "missing" not in found["pods"]

    # One that never asks; and who had fetched is known to the next leader too.
    await _add_pod(world, "silent", address="10.9.9.8")
    await _named(world, "silent", {"Waiting", "NeverAsked"})
    leader = await world.leader()
    await world.kill(leader)
    await world.leader(other_than=leader)
    await world.start(leader)
    # The replica that was away may have been asked while it lived: so this is not called "never asked" any more.
    await _named(world, "silent", {"NotKnown"})


async def _named(world: Fleet, name: str, reasons: set[str]) -> None:
    """Until this Pod, and no other, is missing for one of these reasons. What was proved stays so meanwhile."""
    found: Document = {}
    try:
        async with asyncio.timeout(150):
            while True:
                found = (await world.installation.get("data"))["status"]["pods"]
                assert found["fetched"] == 1, "what was proved is not lost"
                missing = [(one["name"], one["reason"]) for one in found.get("missing", ())]
                if [one for one, _ in missing] == [name] and missing[0][1] in reasons:
                    return
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise TimeoutError(f"{name} is not named with {reasons} but {found}") from error
