"""Proof of load on a real mesh: the status counts the Pods that fetched the module and names the others, and replicas exchange their download logs."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from tests.parts.controlplane import ControlPlane
from tests.parts.faults.virtualtime import VirtualTime
from tests.parts.fleet import LABELS, Fleet, new_fleet
from tests.parts.installation import Document, autowasms
from tests.parts.load import Load
from tests.parts.wasmer import Wasmer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

PODS = "/api/v1/namespaces/default/pods"
LEASE_SECONDS = 1_000
"""Longer than the time that passes at once, so the leader remains the leader."""
ROUND_SECONDS = 61.0
"""Seconds after which a Pod counts as late, and a status may be written again."""
ROUNDS = 20
"""A guard: two writes suffice for the expected status."""


@dataclass(frozen=True)
class TimedFleet:
    """The fleet, on a clock that the test moves."""

    fleet: Fleet
    time: VirtualTime

    async def wait_for_status(
        self, condition: Callable[[Document], bool], *, what: str
    ) -> Document:
        """The status, once `condition` holds, while time passes. Raises TimeoutError with the last one."""

        def met(found: Document | None) -> bool:
            return found is not None and condition(found["status"])

        for left in reversed(range(ROUNDS)):
            await self.time.pass_(ROUND_SECONDS, self.fleet.present)
            try:
                found = await self.fleet.installation.wait_object(
                    autowasms(name="data"), met, what=what, timeout=5
                )
            except TimeoutError:
                if not left:
                    raise
            else:
                status: Document = found["status"]
                return status
        raise AssertionError("unreachable")

    async def expire(self, leader: Wasmer) -> None:
        """Let the Lease of the killed `leader` expire until another replica has it."""
        for left in reversed(range(ROUNDS)):
            # A follower waits from the moment at which it saw the last renewal, which may be after time has passed.
            await self.time.pass_(LEASE_SECONDS + 1, self.fleet.present)
            try:
                await self.fleet.leader(other_than=leader, timeout=5)
            except TimeoutError:
                if not left:
                    raise
            else:
                return


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def timed_fleet(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TimedFleet]:
    directory = tmp_path_factory.mktemp("proof")
    time = VirtualTime(directory / "time")
    arguments = (f"--lease-duration={LEASE_SECONDS}s", f"--renew-deadline={LEASE_SECONDS / 2:g}s")
    async with new_fleet(
        directory, plane=control_plane, arguments=arguments, env=time.environment
    ) as timed_fleet:
        yield TimedFleet(timed_fleet, time)


async def _add_pod(
    timed_fleet: TimedFleet, name: str, *, address: str, sidecar: bool = True
) -> None:
    """As a kubelet would report it: connections from the sidecar come from 127.0.0.1 here."""
    names = ["main", "istio-proxy"] if sidecar else ["main"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": LABELS},
        "spec": {"containers": [{"name": each, "image": "example.com/x:1"} for each in names]},
    }
    found = await timed_fleet.fleet.cluster.request("POST", PODS, body=pod)
    status = {
        "phase": "Running",
        "startTime": datetime.fromtimestamp(timed_fleet.time.time(), UTC).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        ),
        "podIP": address,
        "podIPs": [{"ip": address}],
    }
    body = {**found, "status": {**found.get("status", {}), **status}}
    await timed_fleet.fleet.cluster.request("PUT", f"{PODS}/{name}/status", body=body)


async def _loaded(timed_fleet: TimedFleet, status: str, reason: str, *, fetched: int) -> Document:
    """The status, once `Loaded` has this status and reason, and this many sidecars are counted."""

    def loaded(found: Document) -> bool:
        reported = [one for one in found["conditions"] if one["type"] == "Loaded"]
        return bool(
            reported
            and (reported[0]["status"], reported[0]["reason"]) == (status, reason)
            and found["pods"]["fetched"] == fetched
        )

    return await timed_fleet.wait_for_status(loaded, what=f"Loaded={status} {reason} {fetched}")


async def _named(timed_fleet: TimedFleet, name: str, reasons: set[str]) -> None:
    """Wait until this Pod, and no other, is missing for one of these reasons. Proved downloads stay counted meanwhile."""

    def named(found: Document) -> bool:
        assert found["pods"]["fetched"] == 1, "what was proved is not lost"
        missing = [(one["name"], one["reason"]) for one in found["pods"].get("missing", ())]
        return [one for one, _ in missing] == [name] and missing[0][1] in reasons

    await timed_fleet.wait_for_status(named, what=f"missing {name} for one of {reasons}")


async def test_status_counts_fetching_pods_and_names_the_others_under_a_new_leader_too(
    timed_fleet: TimedFleet,
) -> None:
    mesh = timed_fleet.fleet
    await _add_pod(timed_fleet, "proxy", address="127.0.0.1")
    await _add_pod(timed_fleet, "bare", address="10.9.9.9", sidecar=False)
    module = mesh.module("data")
    await mesh.apply("data", module=module)
    await Load(mesh.host, header="hello").wait_for("data-1", timeout=90)
    found = await _loaded(timed_fleet, "False", "NotInjected", fetched=1)
    assert (found["pods"]["matched"], found["pods"]["injected"]) == (2, 1)
    (missing,) = found["pods"]["missing"]
    assert (missing["namespace"], missing["name"]) == ("default", "bare")
    assert missing["reason"] == "NotInjected"
    text = next(one["message"] for one in found["conditions"] if one["type"] == "Loaded")
    assert text.startswith("1 of 1 sidecars fetched the module; 1 of 2 Pods not known to have it")
    assert "default/bare has no sidecar" in text
    assert found["phase"] == "Synced", "the proof of load changes no phase"

    await mesh.cluster.request("DELETE", f"{PODS}/bare?gracePeriodSeconds=0")
    found = await _loaded(timed_fleet, "True", "Fetched", fetched=1)
    assert "missing" not in found["pods"]

    # A Pod that sends no request; and the next leader, too, knows the Pods that have fetched.
    await _add_pod(timed_fleet, "silent", address="10.9.9.8")
    await _named(timed_fleet, "silent", {"Waiting", "NeverAsked"})
    leader = await mesh.leader()
    await mesh.kill(leader)
    await timed_fleet.expire(leader)
    await mesh.start(leader)
    # The lost replica may have received a request while it ran, so "never asked" no longer applies.
    await _named(timed_fleet, "silent", {"NotKnown"})
