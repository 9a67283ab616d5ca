"""The authorization of published modules, over a real fetcher with a fake registry."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest
from structlog.typing import EventDict

from autowasm.artifacts.source import FetchRequest
from autowasm.controller.pullauthorization import PullAuthorizer
from autowasm.errors import AutoWasmError, SourceDenied, SourceUnavailable
from autowasm.kube.resources import ObjectKey
from autowasm.limits import FetchLimits
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import IMAGE
from tests.parts import wat
from tests.unit.artifacts.conftest import FetchingReplica, fetching_replica

KEY = ObjectKey("default", "test")
OTHER = ObjectKey("other", "test")
DENIED = SourceDenied("no")


@dataclass
class Desk:
    replica: FetchingReplica
    pull_authorizer: PullAuthorizer
    request: FetchRequest
    told: list[ObjectKey] = field(default_factory=list)

    async def decided(
        self, key: ObjectKey = KEY, request: FetchRequest | None = None, *, published: bool = False
    ) -> AutoWasmError | bool:
        async with asyncio.timeout(30):
            while True:
                verdict = self.pull_authorizer.verdict(
                    key, request or self.request, published=published
                )
                if verdict is not False:
                    return verdict
                await asyncio.sleep(0.01)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)

    def verdict(self) -> AutoWasmError | bool:
        return self.pull_authorizer.verdict(KEY, self.request, published=True)


@asynccontextmanager
async def make_desk(directory: Path, metrics: Metrics) -> AsyncIterator[Desk]:
    async with fetching_replica(directory, metrics) as replica:
        told: list[ObjectKey] = []
        limits = FetchLimits(secret_recheck=0.2)
        pull_authorizer = PullAuthorizer(replica.fetcher, limits=limits, on_change=told.append)
        replica.registry.add(IMAGE, wat.header_filter("world"))
        replica.secrets.give("alice", uid="u1")
        replica.registry.failures["resolve anonymous"] = DENIED
        replica.registry.failures["pin anonymous"] = DENIED
        record = await replica.fetcher.fetch(replica.request(secret="pull"))
        assert record.secret_uid == "u1"
        task = asyncio.create_task(pull_authorizer.run(), name="pull authorization")
        try:
            yield Desk(
                replica, pull_authorizer, replica.request(secret="pull", record=record), told
            )
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def desk(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Desk]:
    async with make_desk(tmp_path, metrics) as desk:
        yield desk


async def test_a_record_made_with_the_same_secret_needs_no_registry(desk: Desk) -> None:
    """After a failover the registry may be down."""
    desk.replica.registry.failures["pin"] = SourceUnavailable("down")
    assert await desk.decided() is True
    assert desk.replica.registry.count("pin") == 0


async def test_confirmed_published_module_queues_nothing_and_a_refused_one_does(
    desk: Desk,
) -> None:
    """A published module counts as authorized, so the reconcile that read this needs no other."""
    assert desk.verdict() is True
    reads = desk.replica.secrets.reads.total()
    await desk.until(lambda: desk.replica.secrets.reads.total() > reads + 1)
    assert desk.told == []
    desk.replica.secrets.secrets.pop(("default", "pull"))
    await desk.until(lambda: desk.told)
    assert isinstance(desk.verdict(), SourceDenied)


async def test_verdict_that_an_unpublished_module_waits_for_queues_the_key(desk: Desk) -> None:
    assert desk.pull_authorizer.verdict(KEY, desk.request, published=False) is False
    await desk.until(lambda: desk.told == [KEY])


async def test_a_public_module_needs_nothing(desk: Desk) -> None:
    assert desk.request.record is not None
    public = msgspec.structs.replace(desk.request.record, secret_uid="")
    request = replace(desk.request, secret=None, record=public)
    assert desk.pull_authorizer.verdict(KEY, request, published=False) is True


async def test_another_namespace_needs_a_secret_of_its_own(desk: Desk) -> None:
    anonymous = replace(desk.request, namespace="other", secret=None)
    assert isinstance(await desk.decided(OTHER, anonymous), SourceDenied)
    desk.replica.secrets.give("bob", namespace="other", uid="u2")
    desk.replica.registry.failures["pin bob"] = DENIED
    theirs = replace(desk.request, namespace="other")
    assert isinstance(await desk.decided(OTHER, theirs), SourceDenied)
    desk.replica.registry.failures.pop("pin bob")
    third = ObjectKey("other", "third")
    assert await desk.decided(third, theirs) is True
    assert desk.replica.registry.count("fetch") == 1, "nothing is downloaded for a proof"


async def test_a_secret_that_is_deleted_is_noticed_and_its_return_too(desk: Desk) -> None:
    assert await desk.decided(published=True) is True
    desk.told.clear()
    removed = desk.replica.secrets.secrets.pop(("default", "pull"))
    await desk.until(lambda: desk.told)
    error = desk.verdict()
    assert isinstance(error, SourceDenied)
    assert error.reason == "SecretNotFound"
    desk.replica.secrets.secrets["default", "pull"] = removed
    await desk.until(lambda: desk.verdict() is True)
    assert desk.replica.registry.count("pin") == 0


async def test_a_secret_made_anew_or_rotated_is_proved_at_the_registry(desk: Desk) -> None:
    assert await desk.decided() is True
    desk.replica.secrets.give("carol", uid="u1")
    await desk.until(lambda: desk.replica.registry.count("pin") == 1)
    desk.replica.registry.failures["pin dave"] = DENIED
    desk.replica.secrets.give("dave", uid="u9")
    await desk.until(lambda: isinstance(desk.verdict(), SourceDenied))
    desk.pull_authorizer.recheck(KEY)
    desk.replica.secrets.give("carol", uid="u9")
    await desk.until(lambda: desk.verdict() is True)


async def test_unknown_answer_changes_nothing_that_is_published(desk: Desk) -> None:
    desk.replica.secrets.give("erin", uid="u5")
    desk.replica.registry.failures["pin"] = SourceUnavailable("down")
    assert desk.verdict() is True
    await desk.until(lambda: desk.replica.registry.count("pin"))
    await asyncio.sleep(0.05)
    assert desk.verdict() is True
    unpublished = desk.pull_authorizer.verdict(KEY, desk.request, published=False)
    assert isinstance(unpublished, SourceUnavailable)


async def test_forgotten_objects_are_not_checked(desk: Desk) -> None:
    assert await desk.decided() is True
    desk.pull_authorizer.forget(KEY)
    reads = desk.replica.secrets.reads.total()
    await asyncio.sleep(0.5)
    assert desk.replica.secrets.reads.total() == reads


async def test_published_module_stays_refused_while_nothing_can_be_reported(desk: Desk) -> None:
    removed = desk.replica.secrets.secrets.pop(("default", "pull"))
    await desk.until(lambda: isinstance(desk.verdict(), SourceDenied))
    desk.replica.registry.failures["pin"] = SourceUnavailable("down")
    desk.replica.secrets.secrets["default", "pull"] = removed
    desk.replica.secrets.give("erin", uid="u5")
    before = desk.replica.registry.count("pin")
    await desk.until(lambda: desk.replica.registry.count("pin") > before + 1)
    assert isinstance(desk.verdict(), SourceDenied)


async def test_fault_in_one_check_does_not_end_the_checks(
    desk: Desk, logs: list[EventDict]
) -> None:
    desk.replica.registry.failures["pin"] = RuntimeError("a fault")
    desk.replica.secrets.give("erin", uid="u5")
    assert desk.verdict() is True
    event = "pull authorization failed unexpectedly"
    await desk.until(lambda: event in [one["event"] for one in logs])
    desk.replica.registry.failures["pin"] = DENIED
    await desk.until(lambda: isinstance(desk.verdict(), SourceDenied))
