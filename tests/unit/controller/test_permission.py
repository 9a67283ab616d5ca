"""ADR 19 from end to end, over in-memory seams: a module that a Secret allows is published, and stays when the Secret is revoked."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from autowasm.api import envoyfilter as envoyfilters
from autowasm.artifacts.published import PublishedModules
from autowasm.controller.fetchjobs import FetchJobs
from autowasm.controller.pullauthorization import PullAuthorizer
from autowasm.controller.reconciler import AutoWasmReconciler, Checks, Modules
from autowasm.controller.statusreporter import StatusReporter
from autowasm.errors import SourceDenied, SourceUnavailable
from autowasm.kube.resources import ObjectKey
from autowasm.limits import FetchLimits
from autowasm.settings import EnvoyFetch
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import IMAGE, document
from tests.fakes.publisher import FakeObjects, FakePublisher
from tests.parts import wat
from tests.unit.artifacts.conftest import FetchingReplica, fetching_replica

KEY, THEIRS = ObjectKey("default", "test"), ObjectKey("other", "test")
LIMITS = FetchLimits(secret_recheck=0.1)
DENIED = SourceDenied("no")


class Life:
    """One process, over objects and a cache that outlive it."""

    def __init__(
        self,
        replica: FetchingReplica,
        objects: FakeObjects,
        publisher: FakePublisher,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.replica, self.objects, self.publisher = replica, objects, publisher
        self.changed: set[ObjectKey] = set()
        self.jobs = FetchJobs(
            replica.fetcher, limits=LIMITS, tasks=tasks, on_change=self.changed.add
        )
        self.pull_authorizer = PullAuthorizer(
            replica.fetcher, limits=LIMITS, on_change=self.changed.add
        )
        self.reconciler = AutoWasmReconciler(
            objects=objects,
            publisher=publisher,
            modules=Modules(self.jobs, replica.store, PublishedModules(replica.fetcher)),
            reporter=StatusReporter(publisher, metrics=replica.metrics),
            envoy=EnvoyFetch(),
            checks=Checks(pull_authorizer=self.pull_authorizer),
            now=lambda: "2026-01-01T00:00:00Z",
        )

    async def until(self, condition: Callable[[], object], *, key: ObjectKey = KEY) -> None:
        """Reconcile whenever something changed, until it is so."""
        async with asyncio.timeout(10):
            await self.reconciler.reconcile(key)
            while not condition():
                await asyncio.sleep(0.01)
                if self.changed:
                    await self.reconciler.reconcile(self.changed.pop())

    async def phase(self, phase: str, *, key: ObjectKey = KEY) -> None:
        await self.until(lambda: self.status(key).get("phase") == phase, key=key)

    def status(self, key: ObjectKey = KEY) -> dict[str, Any]:
        status: dict[str, Any] = self.objects.documents[key].get("status", {})
        return status


@asynccontextmanager
async def life(
    directory: Path, objects: FakeObjects, publisher: FakePublisher
) -> AsyncIterator[Life]:
    async with fetching_replica(directory, Metrics()) as replica, asyncio.TaskGroup() as tasks:
        replica.registry.add(IMAGE, wat.header_filter("world"))
        for step in ("resolve", "pin"):
            replica.registry.failures[f"{step} anonymous"] = DENIED
        made = Life(replica, objects, publisher, tasks)
        runner = tasks.create_task(made.pull_authorizer.run(), name="pull authorization")
        try:
            yield made
        finally:
            runner.cancel()
            for key in (KEY, THEIRS):
                made.jobs.forget(key)


async def test_from_the_first_secret_to_its_return(tmp_path: Path) -> None:
    objects = FakeObjects()
    publisher = FakePublisher(objects)
    objects.apply(document(spec={"secret": "pull"}))
    async with life(tmp_path, objects, publisher) as first:
        first.replica.secrets.give("alice", uid="u1")
        await first.phase("Synced")
        published = dict(publisher.envoyfilters[KEY])
        record = envoyfilters.record_of(published)
        assert record is not None
        assert record.secret_uid == "u1"
        assert "alice" not in str(published) + str(first.status())

        first.replica.secrets.secrets.clear()
        await first.phase("Degraded")
        assert "there is no Secret pull" in first.status()["message"]
        assert publisher.envoyfilters[KEY] == published, "the data path is not touched"

        first.replica.secrets.give("alice", uid="u1")
        await first.phase("Synced")
        assert first.replica.registry.count("resolve") == 1, "a tag is not looked up for it"

    async with life(tmp_path, objects, publisher) as second:  # a failover, with the registry down
        second.replica.registry.failures.update(
            dict.fromkeys(("pin", "resolve"), SourceUnavailable("down"))
        )
        second.replica.secrets.give("alice", uid="u1")
        await second.reconciler.reconcile(KEY)
        await asyncio.sleep(0.3)
        await second.phase("Synced")
        assert publisher.envoyfilters[KEY] == published

        second.replica.registry.failures = {"pin": DENIED}
        second.replica.secrets.give("alice", uid="u2")
        second.replica.secrets.give("eve", uid="u2")
        await second.phase("Degraded")
        assert publisher.envoyfilters[KEY] == published


async def test_another_namespace_gets_a_cached_private_module_only_with_a_login_of_its_own(
    tmp_path: Path,
) -> None:
    objects = FakeObjects()
    publisher = FakePublisher(objects)
    objects.apply(document(spec={"secret": "pull"}))
    async with life(tmp_path, objects, publisher) as process:
        process.replica.secrets.give("alice", uid="u1")
        await process.phase("Synced")

        # A client that may write statuses copies the record: it proves nothing here.
        forged = document(namespace="other")
        forged["status"] = process.status()
        objects.apply(forged)
        objects.documents[THEIRS]["status"] = process.status()
        await process.phase("Failed", key=THEIRS)
        assert THEIRS not in publisher.envoyfilters

        process.replica.secrets.give("bob", namespace="other", uid="u2")
        objects.apply(document(namespace="other", spec={"secret": "pull"}, generation=2))
        await process.phase("Synced", key=THEIRS)
        assert process.replica.registry.count("fetch") == 1


@pytest.mark.parametrize(
    "change",
    [{"applyPorts": [0]}, {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}],
    ids=["invalid", "being deleted"],
)
async def test_secret_of_an_invalid_or_terminating_autowasm_is_not_read_any_more(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    objects = FakeObjects()
    publisher = FakePublisher(objects)
    for namespace in ("default", "other"):
        objects.apply(document(namespace=namespace, spec={"secret": "pull"}))
    async with life(tmp_path, objects, publisher) as process:
        reads = process.replica.secrets.reads
        for key in (KEY, THEIRS):
            process.replica.secrets.give("alice", namespace=key.namespace, uid="u1")
            await process.phase("Synced", key=key)
            await process.reconciler.reconcile(key)  # with the published record
        await process.until(lambda: reads["default", "pull"] >= 3)

        objects.apply(document(**{"spec": {"secret": "pull"}, **change}))
        await process.reconciler.reconcile(KEY)
        before, others = reads["default", "pull"], reads["other", "pull"]
        await process.until(lambda: reads["other", "pull"] >= others + 3, key=THEIRS)
        assert reads["default", "pull"] == before
