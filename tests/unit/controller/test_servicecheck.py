"""The Service that EnvoyFilters name: problems that block publications, that are only reported, and that are not known."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from autowasm.controller.servicecheck import (
    CHECK_INTERVAL,
    RECHECK_INTERVAL,
    STARTING,
    PublishedService,
)
from autowasm.kube.errors import ApiError, Forbidden, NotFound, ServerError
from autowasm.kube.resources import SERVICES, ObjectKey, ResourceType
from autowasm.settings import EnvoyFetch

pytestmark = pytest.mark.looptime

GOOD: dict[str, Any] = {"spec": {"ports": [{"port": 80}, {"port": 8081, "protocol": "TCP"}]}}
READY: dict[str, Any] = {"subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]}


@dataclass
class WatchedService:
    """`service` and `endpoints`: the answers of the API server."""

    service: dict[str, Any] | ApiError = field(default_factory=lambda: GOOD)
    endpoints: dict[str, Any] | ApiError = field(default_factory=lambda: READY)
    reports: list[str] = field(default_factory=list)
    requests: list[ObjectKey] = field(default_factory=list)
    changes: int = 0

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.published = PublishedService(
            self,  # type: ignore[arg-type]
            envoy=EnvoyFetch(service_name="w", service_namespace="mesh"),
            report=self.reports.append,
            problem=Gauge("problem", "", ["reason"], registry=self.registry),
        )

    async def get(self, resource: ResourceType, key: ObjectKey) -> dict[str, Any]:
        self.requests.append(key)
        answer = self.service if resource is SERVICES else self.endpoints
        if isinstance(answer, ApiError):
            raise answer
        return answer

    def changed(self) -> None:
        self.changes += 1

    @property
    def reason(self) -> str:
        problem = self.published.problem()
        return problem.reason if problem is not None else ""

    def gauge(self, reason: str) -> float | None:
        return self.registry.get_sample_value("problem", {"reason": reason})


def gone() -> NotFound:
    return NotFound("gone", code=404)


async def test_a_working_service_does_not_block_publishing() -> None:
    watched = WatchedService()
    await watched.published.check()
    assert (watched.reason, watched.reports) == ("", [""])
    assert watched.requests == [ObjectKey("mesh", "w")] * 2


@pytest.mark.parametrize(
    ("service", "reason", "text"),
    [
        (gone(), "ServiceNotFound", "Service mesh/w does not exist"),
        ({"spec": {"ports": [{"port": 80}]}}, "ServicePortMissing", "has no TCP port 8081"),
        ({"spec": {"ports": [{"port": 8081, "protocol": "UDP"}]}}, "ServicePortMissing", "8081"),
        ({"spec": {"type": "ExternalName"}}, "ServicePortMissing", "8081"),
    ],
)
async def test_service_that_is_missing_or_lacks_the_port_blocks_publishing(
    service: Any, reason: str, text: str
) -> None:
    watched = WatchedService(service=service)
    await watched.published.check()
    assert watched.reason == reason
    assert text in str(watched.published.problem())
    assert text in watched.reports[-1]
    assert watched.gauge(reason) == 1


async def test_service_replaced_within_seconds_is_no_problem() -> None:
    watched = WatchedService()
    await watched.published.check()
    running = asyncio.create_task(watched.published.run(watched.changed))
    watched.service = gone()
    await asyncio.sleep(CHECK_INTERVAL + 1)
    watched.service = GOOD
    await asyncio.sleep(CHECK_INTERVAL)
    assert (watched.reason, watched.changes, watched.reports) == ("", 0, [""])
    running.cancel()


async def test_objects_are_reconciled_when_the_service_disappears_and_returns() -> None:
    watched = WatchedService()
    await watched.published.check()
    running = asyncio.create_task(watched.published.run(watched.changed))
    watched.service = gone()
    await asyncio.sleep(CHECK_INTERVAL + RECHECK_INTERVAL + 1)
    assert (watched.reason, watched.changes) == ("ServiceNotFound", 1)
    watched.service = GOOD
    await asyncio.sleep(RECHECK_INTERVAL + 1)
    assert (watched.reason, watched.changes, watched.reports[-1]) == ("", 2, "")
    assert watched.gauge("ServiceNotFound") == 0
    running.cancel()


@pytest.mark.parametrize(
    "endpoints", [gone(), {}, {"subsets": [{"notReadyAddresses": [{"ip": "10.0.0.1"}]}]}]
)
async def test_missing_endpoints_are_reported_without_blocking_publishing(
    endpoints: Any,
) -> None:
    watched = WatchedService(endpoints=endpoints)
    await watched.published.check()
    assert watched.reports == [""], "replicas may be starting"
    running = asyncio.create_task(watched.published.run(watched.changed))
    await asyncio.sleep(STARTING + CHECK_INTERVAL + 1)
    assert "no ready endpoint" in watched.reports[-1]
    assert (watched.reason, watched.changes, watched.gauge("ServiceWithoutEndpoints")) == ("", 0, 1)
    watched.endpoints = READY
    await asyncio.sleep(RECHECK_INTERVAL + 1)
    assert watched.reports[-1] == ""
    running.cancel()


async def test_missing_rights_to_the_service_do_not_block_publishing() -> None:
    """An older ClusterRole with a newer image."""
    watched = WatchedService(service=Forbidden("no", code=403))
    await watched.published.check()
    assert watched.reason == ""
    assert "not allowed to `get` it" in watched.reports[-1]
    watched = WatchedService(endpoints=Forbidden("no", code=403))
    await watched.published.check()
    assert watched.reports == [""]


async def test_failing_api_server_keeps_the_last_result_of_the_service_check() -> None:
    watched = WatchedService(service=ServerError("down", code=500))
    await watched.published.check()
    assert (watched.reason, watched.reports) == ("", [])
    watched.service = gone()
    await watched.published.check()
    watched.service = ServerError("down", code=500)
    await watched.published.check()
    assert watched.reason == "ServiceNotFound"
