"""Polling in virtual time: when sources are polled, how many at once, and the effect of an answer."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import structs

from autowasm.api import validation
from autowasm.api.record import Record
from autowasm.api.v1alpha1 import AutoWasm
from autowasm.artifacts.source import FetchRequest
from autowasm.controller.polling import Poller, PollGroups
from autowasm.digest import Sha256Hex
from autowasm.errors import AutoWasmError, ContentRejected, SourceDenied, SourceUnavailable
from autowasm.kube.leaderelection import AlwaysLeading, Leadership, Tenure
from autowasm.kube.resources import ObjectKey
from autowasm.settings import PollSettings
from autowasm.telemetry.metrics import Metrics

pytestmark = pytest.mark.looptime(noop_cycles=0)

IMAGE = "registry.example/a/b:stable"
OLD, NEW = "1" * 64, "2" * 64


def record(digest: str = OLD, *, image: str = IMAGE, sha256: str | None = None) -> Record:
    name = image.rpartition(":")[0]
    return Record(
        source=f"registry:{image}",
        sha256=Sha256Hex(sha256 or digest),
        size=1,
        abi="0.2.1",
        image=f"{name}@sha256:{digest}",
    )


def autowasm(
    key: ObjectKey, *, image: str = IMAGE, secret: str | None = None, **fields: Any
) -> AutoWasm:
    filter_ = {"source": {"registry": {"image": image}}, "refreshInterval": "1m", **fields}
    filter_ = {name: value for name, value in filter_.items() if value is not None}
    spec: dict[str, Any] = {"filter": filter_, "selector": {"matchLabels": {"app": "a"}}}
    if secret is not None:
        spec["secret"] = secret
    return validation.parse(
        {
            "apiVersion": "wasm.tcm.io/v1alpha1",
            "kind": "AutoWasm",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "spec": spec,
        }
    )


@dataclass
class Registry:
    """Names one digest for every tag, or raises; every question takes `seconds`."""

    digest: str = OLD
    error: Exception | None = None
    fetch_error: Exception | None = None
    seconds: float = 0.0
    polls: list[tuple[float, str]] = field(default_factory=list)
    """When, and of which namespace."""
    fetched: int = 0
    running: Counter[str] = field(default_factory=Counter)
    most: int = 0
    most_of_one: int = 0

    async def has_moved(self, request: FetchRequest, known: Record) -> bool | None:
        self.polls.append((asyncio.get_running_loop().time(), request.namespace))
        self.running[request.namespace] += 1
        self.most = max(self.most, self.running.total())
        self.most_of_one = max(self.most_of_one, *self.running.values())
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running[request.namespace] -= 1
        if self.error is not None:
            raise self.error
        return not known.image.endswith(self.digest)

    async def fetch(self, request: FetchRequest) -> Record:
        self.fetched += 1
        if self.fetch_error is not None:
            raise self.fetch_error
        assert request.source.registry is not None
        return record(self.digest, image=request.source.registry.image)


@dataclass
class RunningPoller:
    """`changed`: the keys that were to be reconciled."""

    registry: Registry
    polling: Poller
    metrics: Metrics
    changed: list[ObjectKey]

    def times(self) -> list[float]:
        return [time for time, _ in self.registry.polls]

    def outcome(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value("autowasm_polls_total", {"outcome": name})
        return value or 0.0


@asynccontextmanager
async def running(
    registry: Registry | None = None,
    *,
    settings: PollSettings | None = None,
    leadership: Leadership | None = None,
    wall: Callable[[], float] = lambda: 1_000.0,
) -> AsyncIterator[RunningPoller]:
    settings, metrics, changed = settings or PollSettings(), Metrics(), list[ObjectKey]()
    registry = registry or Registry()
    polling = Poller(
        registry,
        settings=settings,
        metrics=metrics,
        on_change=changed.append,
        groups=PollGroups(settings, rng=random.Random(1)),
        wall=wall,
    )
    task = asyncio.create_task(polling.run(leadership or AlwaysLeading()))
    try:
        yield RunningPoller(registry, polling, metrics, changed)
    finally:
        task.cancel()
        await asyncio.wait([task])


A, B = ObjectKey("team", "a"), ObjectKey("team", "b")


async def test_first_poll_and_all_others_follow_the_interval_with_jitter() -> None:
    async with running() as poller:
        poller.polling.published(A, autowasm(A), record())
        await asyncio.sleep(3600)
        times = poller.times()
    assert times[0] <= 61
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) > 50
    assert all(53 <= gap <= 68 for gap in gaps)
    assert len({round(gap) for gap in gaps}) > 4, "jittered"
    assert poller.changed == []
    assert poller.registry.fetched == 0


async def test_a_start_with_many_sources_is_spread_over_the_interval() -> None:
    async with running() as poller:
        for number in range(120):
            key, image = ObjectKey("team", f"f{number}"), f"registry.example/a/b:{number}"
            poller.polling.published(
                key, autowasm(key, image=image, refreshInterval="10m"), record(image=image)
            )
        await asyncio.sleep(601)
        per_minute = Counter(int(time // 60) for time in poller.times())
    assert sum(per_minute.values()) >= 120
    assert max(per_minute.values()) < 30


async def test_the_next_time_survives_being_reconciled() -> None:
    async with running() as poller:
        for _ in range(120):
            poller.polling.published(A, autowasm(A), record())
            await asyncio.sleep(5)
    assert 8 <= len(poller.times()) <= 12


async def test_a_shorter_interval_counts_at_once() -> None:
    async with running() as poller:
        poller.polling.published(A, autowasm(A, refreshInterval="24h"), record())
        await asyncio.sleep(1)
        poller.polling.published(A, autowasm(A, refreshInterval="30s"), record())
        await asyncio.sleep(40)
        assert len(poller.times()) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"refreshInterval": None},
        {"sha256": OLD},
        {"image": f"registry.example/a/b@sha256:{OLD}"},
        {"image": "registry.example/a/other:stable"},
    ],
    ids=["no interval", "pinned by sha256", "pinned by digest", "another source"],
)
async def test_source_is_not_polled_if_pinned_changed_or_without_interval(
    fields: dict[str, Any],
) -> None:
    document = autowasm(A, **fields)
    async with running() as poller:
        poller.polling.published(A, autowasm(A), record())
        poller.polling.published(A, document, record())
        await asyncio.sleep(300)
        assert poller.times() == []


async def test_a_deleted_object_is_no_longer_polled() -> None:
    async with running() as poller:
        poller.polling.published(A, autowasm(A), record())
        await asyncio.sleep(100)
        polls = len(poller.times())
        assert polls
        poller.polling.forget(A)
        await asyncio.sleep(600)
        assert len(poller.times()) == polls


async def test_poll_result_for_a_deleted_object_changes_nothing() -> None:
    async with running(Registry(NEW, seconds=20)) as poller:
        poller.polling.published(A, autowasm(A), record())
        while not poller.registry.polls:
            await asyncio.sleep(1)
        poller.polling.forget(A)
        await asyncio.sleep(60)
        assert poller.changed == []
        assert poller.polling.found(A, autowasm(A)) is None
        assert poller.outcome("outdated") == 1


async def test_a_moved_tag_is_fetched_once_for_all_objects_that_use_it() -> None:
    async with running(Registry(NEW)) as poller:
        poller.polling.published(A, autowasm(A), record())
        poller.polling.published(B, autowasm(B), record())
        await asyncio.sleep(62)
        assert poller.registry.fetched == 1
        assert poller.changed == [A, B]
        assert (
            poller.polling.found(A, autowasm(A))
            == poller.polling.found(B, autowasm(B))
            == record(NEW)
        )
        for key in (A, B):
            assert poller.polling.published(key, autowasm(key), record(NEW)) is None
            assert poller.polling.found(key, autowasm(key)) is None
        await asyncio.sleep(300)
        assert poller.changed == [A, B]
        assert poller.registry.fetched == 1


async def test_a_thousand_of_one_tag_cost_one_request_an_interval() -> None:
    async with running() as poller:
        for number in range(1000):
            key = ObjectKey("team", f"f{number}")
            poller.polling.published(key, autowasm(key), record())
        await asyncio.sleep(600)
        assert 8 <= len(poller.times()) <= 12


async def test_objects_with_different_secrets_are_polled_separately() -> None:
    async with running(Registry(NEW)) as poller:
        poller.polling.published(A, autowasm(A, secret="one"), record())
        poller.polling.published(B, autowasm(B, secret="two"), record())
        await asyncio.sleep(62)
        assert poller.registry.fetched == 2


async def test_poll_does_not_revert_a_later_resolve() -> None:
    async with running() as poller:
        poller.polling.published(A, autowasm(A), record())
        await asyncio.sleep(62)  # the poll knows OLD
        poller.polling.published(A, autowasm(A), record(NEW))  # `pullPolicy: Always`, or a refresh
        assert poller.polling.found(A, autowasm(A)) is None


async def test_the_budget_holds_and_namespaces_take_turns() -> None:
    settings = PollSettings(rate=2.0, burst=4)
    async with running(settings=settings) as poller:
        for number in range(500):
            key, image = ObjectKey("greedy", f"f{number}"), f"registry.example/a/b:{number}"
            poller.polling.published(
                key, autowasm(key, image=image, refreshInterval="30s"), record(image=image)
            )
        small = ObjectKey("small", "one")
        poller.polling.published(small, autowasm(small), record())
        await asyncio.sleep(600)
        polls = poller.registry.polls
    assert 1100 <= len(polls) <= 600 * 2 + 4
    per_second = Counter(int(time) for time, _ in polls)
    assert max(per_second.values()) <= 4 + 2
    of_small = [time for time, namespace in polls if namespace == "small"]
    gaps = [after - before for before, after in itertools.pairwise(of_small)]
    assert len(of_small) >= 8
    assert max(gaps) < 75


async def test_a_hanging_registry_of_one_namespace_leaves_places_to_others() -> None:
    settings = PollSettings(at_once=4, max_per_namespace=2)
    async with running(Registry(seconds=40), settings=settings) as poller:
        for namespace in ("one", "two", "three"):
            for number in range(10):
                key, image = ObjectKey(namespace, f"f{number}"), f"registry.example/a/b:{number}"
                poller.polling.published(key, autowasm(key, image=image), record(image=image))
        await asyncio.sleep(600)
    assert poller.registry.most == 4
    assert poller.registry.most_of_one == 2
    assert {namespace for _, namespace in poller.registry.polls} == {"one", "two", "three"}


async def test_polls_of_an_unreachable_registry_back_off_without_a_report() -> None:
    error = SourceUnavailable("down", reason="RegistryUnavailable")
    async with running(Registry(error=error)) as poller:
        poller.polling.published(A, autowasm(A, refreshInterval="30s"), record())
        await asyncio.sleep(3600)
        times = poller.times()
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert gaps[0] < gaps[1] < gaps[2] < gaps[3]
        assert 295 <= max(gaps) <= 335
        assert poller.changed == []
        assert poller.polling.published(A, autowasm(A), record()) is None
        poller.registry.error = None
        poller.registry.digest = NEW
        await asyncio.sleep(335)
        assert poller.changed == [A]


async def test_retry_after_is_honoured() -> None:
    error = SourceUnavailable("429", reason="RegistryUnavailable", retry_after=2000.0)
    async with running(Registry(error=error)) as poller:
        poller.polling.published(A, autowasm(A, refreshInterval="30s"), record())
        await asyncio.sleep(4500)
        times = poller.times()
    assert all(after - before >= 2000 for before, after in itertools.pairwise(times))
    assert len(times) == 3


@pytest.mark.parametrize(
    "error", [SourceDenied("no"), ContentRejected("not wasm", reason="InvalidModule")]
)
async def test_a_refused_poll_is_reported_once_and_cleared_once(error: AutoWasmError) -> None:
    registry = Registry(NEW, fetch_error=error)
    async with running(registry) as poller:
        poller.polling.published(A, autowasm(A), record())
        await asyncio.sleep(400)
        assert registry.fetched > 1
        assert poller.changed == [A]
        assert poller.polling.published(A, autowasm(A), record()) is error
        assert poller.polling.found(A, autowasm(A)) is None
        registry.digest, registry.fetch_error = OLD, None
        await asyncio.sleep(400)
        assert poller.changed == [A, A]
        assert poller.polling.published(A, autowasm(A), record()) is None


async def test_a_bug_fails_one_poll_only() -> None:
    async with running(Registry(error=RuntimeError("bug"))) as poller:
        poller.polling.published(A, autowasm(A), record())
        await asyncio.sleep(62)
        poller.registry.error = None
        poller.registry.digest = NEW
        await asyncio.sleep(100)
        assert poller.outcome("InternalError") == 1
        assert poller.changed == [A]


async def test_polls_run_only_while_leading_and_end_with_it() -> None:
    tenure = Tenure(lambda _: None)
    async with running(Registry(NEW, seconds=50), leadership=tenure) as poller:
        poller.polling.published(A, autowasm(A), record())
        await asyncio.sleep(200)
        assert poller.times() == []
        tenure.extend(asyncio.get_running_loop().time() + 10_000)
        await asyncio.sleep(5)
        assert len(poller.times()) == 1
        tenure.end()
        await asyncio.sleep(200)
        assert poller.registry.running.total() == 0
        assert poller.changed == []
        assert poller.outcome("changed") == 0
        tenure.extend(asyncio.get_running_loop().time() + 10_000)
        await asyncio.sleep(60)
        assert len(poller.times()) == 2
        assert poller.changed == [A]


async def test_a_confirmed_tag_is_young_again() -> None:
    async with running(wall=lambda: 5_000.0) as poller:
        place = (A.namespace, A.name)
        poller.metrics.objects.resolved(place, 1_000.0)
        poller.polling.published(A, autowasm(A), record())
        await asyncio.sleep(62)
        poller.metrics.objects.resolved(place, 1_000.0)  # a reconcile repeats the status
        assert poller.metrics.objects._resolved[place][1] == 5_000.0


async def test_an_object_with_other_validators_and_the_same_bytes_is_no_change() -> None:
    url = "https://example.com/filter.wasm"
    known = Record(
        source=f"object:{url}", sha256=Sha256Hex(OLD), size=1, abi="0.2.1", url=url, etag="1"
    )
    seen: list[Record | None] = []

    class Server(Registry):
        async def has_moved(self, request: FetchRequest, known: Record) -> bool | None:
            return None

        async def fetch(self, request: FetchRequest) -> Record:
            seen.append(request.known)
            return structs.replace(known, etag=str(len(seen) + 1))

    document = autowasm(A, source={"object": {"url": url}})
    async with running(Server()) as poller:
        poller.polling.published(A, document, known)
        await asyncio.sleep(200)
        assert poller.changed == []
        etags = [each.etag for each in seen if each is not None]
        assert etags[:3] == ["1", "2", "3"], "the latest validators are shown"


@pytest.mark.parametrize("error", [None, SourceUnavailable("down")])
async def test_answer_to_an_outdated_poll_changes_nothing(
    error: Exception | None,
) -> None:
    registry = Registry(NEW, error=error, seconds=10)
    async with running(registry) as poller:
        poller.polling.published(A, autowasm(A), record())
        while not registry.polls:
            await asyncio.sleep(1)
        poller.polling.forget(A)
        await asyncio.sleep(20)
        assert poller.changed == []
        assert poller.outcome("outdated") == 1


async def test_object_is_polled_for_the_image_of_its_current_spec() -> None:
    other = IMAGE.replace("a/b", "c/d")
    async with running() as poller:
        poller.polling.published(A, autowasm(A), record())
        poller.polling.published(B, autowasm(B), record())
        poller.polling.published(A, autowasm(A, image=other), record(image=other))
        await asyncio.sleep(70)
        assert len([time for time in poller.times() if time <= 61]) == 2, "one for each image"
        poller.polling.forget(A)
        before = len(poller.times())
        await asyncio.sleep(600)
        assert 9 <= len(poller.times()) - before <= 11, "the other goes on"
