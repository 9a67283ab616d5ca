"""The evidence of DownloadTracker at each check: its age, its source, and when it is dropped."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from autowasm.controller.pods.downloadtracker import PeerQuery
from autowasm.controller.pods.loadreport import STEP
from autowasm.controller.pods.podmatching import Pod
from autowasm.kube.leaderelection import Tenure
from autowasm.telemetry.metrics import Metrics
from tests.unit.controller.pods.trackedpods import (
    KEY,
    NOW,
    A,
    TrackedPods,
    loading,
    pod,
    report_of,
    stamp,
)


class Answers(PeerQuery):
    """Returns answers of a query `age` seconds ago, and records the requested maximum age."""

    def __init__(self, tracked: TrackedPods, *, age: float = 0.0) -> None:
        super().__init__(tracked)
        self.age = age
        self.within: dict[str, float] = {}

    async def recent(self, path: str, *, within: float) -> tuple[float, list[bytes], bool]:
        self.within[path] = within
        _, documents, complete = await self._fresh(path)
        return asyncio.get_running_loop().time() - self.age, documents, complete


@pytest.mark.looptime
async def test_ages_count_from_the_start_of_the_peer_query() -> None:
    tracked = TrackedPods(pods=[pod("a", "10.0.0.1", started=NOW - 100)], published=NOW - 200)
    found = loading(tracked, peer_query=Answers(tracked, age=30.0))
    await report_of(found)
    tracked.download("10.0.0.1", age=80)
    await found.check()
    assert (await report_of(found)).pods.fetched == 0, "110 s ago it was another Pod's address"
    tracked.download("10.0.0.1", age=70)
    await found.check()
    assert (await report_of(found)).pods.fetched == 1


@pytest.mark.looptime
async def test_an_answer_may_be_half_an_interval_old_and_not_older_than_the_news() -> None:
    tracked = TrackedPods()
    answers = Answers(tracked, age=2.0)
    found = loading(tracked, peer_query=answers, interval=10.0)
    await report_of(found)
    begun = asyncio.get_running_loop().time()
    await found.check()
    assert asyncio.get_running_loop().time() < begun + 0.5, "a look waits for nothing"
    assert answers.within == {"/seen": 10.0, f"/seen/{A}": 2.0}
    answers.age = 7.0
    tracked.downloads += 1
    await found.check()
    assert answers.within[f"/seen/{A}"] == 5.0


async def test_downloads_are_learned_even_from_replicas_without_an_instance_name() -> None:
    class Nameless(TrackedPods):
        async def query(self, path: str) -> list[bytes]:
            return await super().query(path) if path != "/seen" else [b"{}"]

    tracked = Nameless()
    found = loading(tracked)
    await report_of(found)
    tracked.download("10.0.0.1", age=5)
    await found.check()
    assert (await report_of(found)).pods.fetched == 1


async def test_a_new_error_causes_a_query_like_a_new_download() -> None:
    class Erring(TrackedPods):
        errors = 0

        async def query(self, path: str) -> list[bytes]:
            documents = await super().query(path)
            if path != "/seen":
                return documents
            return [json.dumps({"instance": "a", "downloads": 0, "errors": self.errors}).encode()]

    tracked = Erring()
    found = loading(tracked)
    await report_of(found)
    await found.check()
    tracked.queries.clear()
    tracked.errors = 1
    await found.check()
    assert tracked.queries == ["/seen", f"/seen/{A}"]


async def test_replicas_are_asked_again_until_all_answer() -> None:
    tracked = TrackedPods(replicas=2)
    found = loading(tracked)
    await report_of(found)
    await found.check()
    tracked.queries.clear()
    await found.check()
    assert tracked.queries == ["/seen", f"/seen/{A}"], "one is missing"
    tracked.replicas = 1
    await found.check()
    tracked.queries.clear()
    await found.check()
    assert tracked.queries == ["/seen"]


@pytest.mark.parametrize(("later", "remembered"), [(15, True), (16, False)])
async def test_sixteen_lost_replicas_are_remembered(later: int, remembered: bool) -> None:
    others = [f"other-{number}" for number in range(later)]
    tracked = TrackedPods(others=["first", *others])
    found = loading(tracked)
    await report_of(found)
    await found.check()
    tracked.others = others
    await found.check()  # the first one went
    tracked.others = []
    await found.check()
    assert (await report_of(found)).loaded.reason == "NotKnown"
    tracked.others = others
    await found.check()
    reason = (await report_of(found)).loaded.reason
    assert reason == ("NotKnown" if remembered else "NeverAsked")


async def test_status_is_used_once_and_never_overrides_later_evidence() -> None:
    tracked = TrackedPods(seen={"10.0.0.1": {"ok": 90.0}}, downloads=1)
    found = loading(tracked)
    await report_of(found)
    await found.check()
    before = await report_of(found)
    assert before.pods.fetched == 1
    tracked.write(before)
    after = loading(tracked)
    tracked.seen = {"10.0.0.1": {"error": 5.0, "status": 503}}  # type: ignore[dict-item]
    assert (await report_of(after)).pods.fetched == 1
    tracked.downloads += 1
    await after.check()
    assert (await report_of(after)).loaded.reason == "Refused"
    tracked.seen = {}
    tracked.downloads += 1
    await after.check()
    assert ((await report_of(after)).pods.fetched, (await report_of(after)).loaded.reason) == (
        0,
        "NeverAsked",
    )


async def test_evidence_needs_a_new_query_only_after_news() -> None:
    tracked = TrackedPods(pods=[pod("a", "10.0.0.1", started=NOW - 30)], published=NOW - 30)
    found = loading(tracked)
    await report_of(found)
    await found.check()
    assert (await report_of(found)).loaded.reason == "Waiting"
    tracked.now = NOW + 40
    assert (await report_of(found)).loaded.reason == "NeverAsked", "there was no news since"


async def test_missing_pods_are_not_known_before_the_first_peer_query() -> None:
    tracked = TrackedPods(pods=[pod("a", "10.0.0.1", started=NOW - 100)], published=NOW - 100)
    found = loading(tracked)
    assert (await report_of(found)).loaded.reason == "NotKnown"


@pytest.mark.parametrize(
    ("sha256", "fetched_at", "reason"),
    [(A, NOW - 300, "NotKnown"), (A, NOW - 100, "NeverAsked"), ("b" * 64, NOW - 300, "NeverAsked")],
)
async def test_silence_counts_from_when_this_module_was_fetched_first(
    sha256: str, fetched_at: float, reason: str
) -> None:
    tracked = TrackedPods(up=200.0, published=NOW - 100)
    tracked.write(await report_of(loading(tracked)))
    tracked.status["module"] |= {"sha256": sha256, "fetchedAt": stamp(fetched_at)}
    found = loading(tracked)
    await report_of(found)
    await found.check()
    assert (await report_of(found)).loaded.reason == reason


async def test_silence_counts_from_the_change_where_the_status_has_no_module() -> None:
    tracked = TrackedPods(up=200.0, published=NOW - 100)
    found = loading(tracked)
    await report_of(found)
    await found.check()
    assert (await report_of(found)).loaded.reason == "NeverAsked"


@pytest.mark.parametrize("lacking", ["pods", "conditions"])
async def test_a_status_that_lacks_a_part_is_not_kept(lacking: str) -> None:
    tracked = TrackedPods()
    first = loading(tracked)
    await report_of(first)
    tracked.download("10.0.0.1", age=90)
    await first.check()
    tracked.write(await report_of(first))
    del tracked.status[lacking]
    assert (await report_of(loading(tracked))).pods.missing[0].reason == "NotKnown"


async def test_the_time_stays_while_the_same_is_seen() -> None:
    tracked = TrackedPods()
    found = loading(tracked)
    await report_of(found)
    await found.check()
    tracked.write(await report_of(found))
    tracked.now = NOW + 30
    assert (await report_of(found)).pods.time == stamp(NOW)


async def test_report_without_an_earlier_time_has_the_current_one() -> None:
    tracked = TrackedPods()
    tracked.write(await report_of(loading(tracked)))
    del tracked.status["pods"]
    tracked.now = NOW + 30
    assert (await report_of(loading(tracked))).pods.time == stamp(NOW + 30)


async def test_downloads_of_a_module_are_forgotten_with_its_last_object() -> None:
    class Changing(TrackedPods):
        is_there = True

        def keys(self) -> frozenset[Any]:
            return super().keys() if self.is_there else frozenset()

    tracked = Changing()
    found = loading(tracked)
    await report_of(found)
    tracked.download("10.0.0.1", age=5)
    await found.check()
    assert (await report_of(found)).pods.fetched == 1
    tracked.is_there = False
    await found.check()
    tracked.is_there = True
    assert (await report_of(found)).pods.fetched == 0


def iterations() -> tuple[asyncio.Task[None], list[int]]:
    """A task that counts the iterations of the event loop."""
    count = [0]

    async def counting() -> None:
        while True:
            count[0] += 1
            await asyncio.sleep(0)

    return asyncio.create_task(counting()), count


async def test_check_yields_to_the_event_loop_between_steps_and_after_each_object() -> None:
    tracked = TrackedPods(seen={f"10.9.{n >> 8}.{n & 255}": {"ok": 1.0} for n in range(2_000)})
    found = loading(tracked)
    await report_of(found)
    task, count = iterations()
    try:
        await found.check()
        learning = count[0]
        await found.check()
        alone = count[0] - learning
    finally:
        task.cancel()
    assert learning >= 20, "two passes in ten steps each"
    assert alone >= 1, "one object"


async def test_pods_are_listed_in_steps() -> None:
    class Many(TrackedPods):
        listed = 0

        def matched(self, key: Any) -> Iterable[Pod]:
            for one in self.pods:
                self.listed += 1
                yield one

    tracked = Many(pods=[pod(f"{n}", f"10.1.{n >> 8}.{n & 255}") for n in range(2 * STEP)])
    found = loading(tracked)
    listed = [tracked.listed for _ in found._report(KEY)]
    assert listed[:2] == [STEP, 2 * STEP]
    assert listed.count(STEP) == 1


async def rolled_out(tracked: TrackedPods, *ages: tuple[str, float]) -> float | None:
    """The seconds of a rollout that ends with these downloads; None if none was measured."""
    metrics = Metrics()
    found = loading(tracked, metrics)
    await report_of(found)
    for address, age in ages:
        tracked.download(address, age=age)
    await found.check()
    assert (await report_of(found)).loaded.status == "True"
    assert metrics.registry.get_sample_value("autowasm_rollout_unfinished") == 0
    value = metrics.registry.get_sample_value
    counted = value("autowasm_rollout_duration_seconds_count")
    return value("autowasm_rollout_duration_seconds_sum") if counted else None


BOTH = ("10.0.0.1", 90.0), ("10.0.0.2", 40.0)


async def test_a_rollout_is_measured_up_to_the_last_download() -> None:
    assert await rolled_out(TrackedPods(), *BOTH) == pytest.approx(60, abs=1)


@pytest.mark.parametrize(
    ("late", "is_measured"), [(NOW - 200, True), (NOW - 100, True), (NOW - 99, False)]
)
async def test_a_rollout_to_pods_that_started_later_is_not_measured(
    late: float, is_measured: bool
) -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", started=late)]
    assert (await rolled_out(TrackedPods(pods=pods), *BOTH) is not None) == is_measured


@pytest.mark.looptime
async def test_a_rollout_without_a_duration_is_not_measured() -> None:
    assert await rolled_out(TrackedPods(), ("10.0.0.1", 100.0), ("10.0.0.2", 100.0)) is None


async def test_a_rollout_that_was_over_when_the_object_changed_is_not_measured() -> None:
    assert await rolled_out(TrackedPods(published=NOW - 10), *BOTH) is None


@pytest.mark.looptime
async def test_a_new_leader_starts_without_lost_replicas_and_download_counts() -> None:
    tracked = TrackedPods(others=["b", "c"])
    tenure = Tenure(lambda _: None)
    found = loading(tracked, interval=10.0)
    running = asyncio.create_task(found.run(tenure))
    clock = asyncio.get_running_loop()
    try:
        tenure.extend(clock.time() + 1_000)
        await asyncio.sleep(1)
        await report_of(found)
        await asyncio.sleep(10)
        tracked.others = ["c"]
        await asyncio.sleep(20)
        assert (await report_of(found)).loaded.reason == "NotKnown", "one went"
        tenure.end()
        await asyncio.sleep(1)
        tracked.others = []
        tracked.queries.clear()
        tenure.extend(clock.time() + 1_000)
        await asyncio.sleep(1)
        await report_of(found)
        await asyncio.sleep(10)
        assert tracked.queries == ["/seen", f"/seen/{A}"]
        assert (await report_of(found)).loaded.reason == "NeverAsked"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.looptime
async def test_new_leader_queries_replicas_about_an_object_once_it_is_reported_again() -> None:
    tracked = TrackedPods()
    tenure = Tenure(lambda _: None)
    found = loading(tracked, interval=10.0)
    running = asyncio.create_task(found.run(tenure))
    try:
        await report_of(found)
        tenure.extend(asyncio.get_running_loop().time() + 1_000)
        await asyncio.sleep(11)
        assert tracked.queries == ["/seen"]
        await report_of(found)
        await asyncio.sleep(10)
        assert tracked.queries[-1] == f"/seen/{A}"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
