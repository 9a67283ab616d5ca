"""DownloadTracker with one object: queries to the replicas, and reports."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest
import structlog

from autowasm.api import envoyfilter as envoyfilters
from autowasm.controller.pods.downloadtracker import PeerQuery
from autowasm.controller.pods.podmatching import Pod
from autowasm.kube.leaderelection import Tenure
from autowasm.kube.resources import ObjectKey
from autowasm.settings import EnvoyFetch
from autowasm.telemetry.metrics import Metrics
from tests.fakes.autowasms import autowasm, digest, record
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


async def test_rollout_ends_with_the_last_download_and_is_measured_once() -> None:
    tracked, metrics = TrackedPods(), Metrics()
    found = loading(tracked, metrics)
    await report_of(found)
    tracked.download("10.0.0.1", age=90)
    await found.check()
    assert (await report_of(found)).pods.fetched == 1
    assert (await report_of(found)).loaded.reason == "NeverAsked"
    tracked.download("10.0.0.2", age=40)
    await found.check()
    assert ((await report_of(found)).pods.fetched, (await report_of(found)).loaded.status) == (
        2,
        "True",
    )
    value = metrics.registry.get_sample_value
    assert value("autowasm_rollout_duration_seconds_count") == 1
    total = value("autowasm_rollout_duration_seconds_sum")
    assert total is not None
    assert 55 < total < 65, "from the change to the last download"
    assert value("autowasm_rollout_pods", {"state": "Fetched"}) == 2
    assert value("autowasm_rollout_unfinished") == 0
    tracked.queries.clear()
    tracked.download("10.0.0.2", age=1)
    await found.check()
    assert tracked.queries == ["/seen"], "all is known: nothing is asked about the module"


async def test_replicas_are_asked_about_a_module_only_when_there_is_news() -> None:
    tracked = TrackedPods()
    found = loading(tracked)
    await report_of(found)
    await found.check()
    assert tracked.queries == ["/seen", f"/seen/{A}"]
    await found.check()
    assert tracked.queries[2:] == ["/seen"]


async def test_replica_that_does_not_answer_leaves_silence_unknown() -> None:
    tracked = TrackedPods(replicas=2)
    found = loading(tracked)
    await report_of(found)
    await found.check()
    assert (await report_of(found)).loaded.reason == "NotKnown"


async def test_an_odd_object_does_not_stop_the_others() -> None:
    other = ObjectKey("default", "other")

    class Odd(TrackedPods):
        is_odd = False

        def keys(self) -> frozenset[ObjectKey]:
            return frozenset({KEY, other})

        def matched(self, key: ObjectKey) -> Iterable[Pod]:
            if self.is_odd and key == first:
                raise RuntimeError("odd")
            return super().matched(key)

    for first, second in ((KEY, other), (other, KEY)):
        tracked, metrics = Odd(), Metrics()
        found = loading(tracked, metrics)
        for key in (first, second):
            assert await found.report(key) is not None
        tracked.is_odd = True
        tracked.download("10.0.0.1", age=90)
        tracked.download("10.0.0.2", age=90)
        with structlog.testing.capture_logs() as logs:
            await found.check()
        assert [log["key"] for log in logs] == [str(first)]
        assert metrics.registry.get_sample_value("autowasm_rollout_unfinished") == 1


async def test_a_module_that_cannot_be_learned_of_does_not_stop_the_others() -> None:
    """And its own object is reported after the next check."""
    other = ObjectKey("default", "other")

    class Odd(TrackedPods):
        is_odd = True

        def keys(self) -> frozenset[ObjectKey]:
            return frozenset({KEY, other})

        def envoyfilter(self, key: ObjectKey) -> Mapping[str, Any] | None:
            sha256 = A if key == KEY else digest("b")
            document = envoyfilters.render(autowasm(), record(sha256=sha256), EnvoyFetch())
            document["metadata"]["managedFields"] = [{"time": stamp(self.published)}]
            return document

        async def query(self, path: str) -> list[bytes]:
            if self.is_odd and path.endswith(A):
                raise RuntimeError("odd")
            return await super().query(path)

        def touch_pods(self, key: ObjectKey) -> None:
            if self.is_odd and key == other:
                raise RuntimeError("odd")
            super().touch_pods(key)

    tracked, metrics = Odd(), Metrics()
    found = loading(tracked, metrics)
    for key in (KEY, other):
        assert await found.report(key) is not None
    tracked.download("10.0.0.1", age=90)
    tracked.download("10.0.0.2", age=90)
    with structlog.testing.capture_logs() as logs:
        await found.check()
    assert [(log.get("digest"), log.get("key")) for log in logs] == [(A, None), (None, str(other))]
    failed = metrics.registry.get_sample_value
    assert failed("autowasm_unexpected_errors_total", {"work": "proof_of_load"}) == 2
    tracked.is_odd = False
    await found.check()
    report = await found.report(KEY)
    assert report is not None
    assert report.loaded.reason == "Fetched"


async def test_a_large_mesh_is_reported_in_turns() -> None:
    """One AutoWasm that selects 50 000 Pods: the missing ones have to be found and sorted."""
    pods = [pod(f"p{n:05}", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(50_000)]
    tracked = TrackedPods(pods=pods[::-1])
    tracked.download("10.0.0.0", age=90)
    tracked.seen["10.9.9.9"] = {"ok": 50.0}  # of no Pod: every Pod may be the one
    found = loading(tracked)
    await report_of(found)
    await found.check()
    reporting = asyncio.ensure_future(found.report(KEY))
    iterations = 0
    while not reporting.done():
        await asyncio.sleep(0)
        iterations += 1
    report = await reporting
    assert report is not None
    assert (report.pods.matched, report.pods.fetched) == (50_000, 1)
    assert [one.name for one in report.pods.missing[:2]] == ["p00001", "p00002"]
    assert iterations >= 3 * len(pods) / 500


async def test_a_look_between_the_steps_of_a_first_report_costs_nothing() -> None:
    pods = [pod(f"p{n:05}", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(5_000)]
    found = loading(TrackedPods(pods=pods))
    reporting = asyncio.ensure_future(found.report(KEY))
    while not reporting.done():
        await asyncio.sleep(0)
        await found.check()
    assert await reporting is not None
    await found.check()
    assert (await report_of(found)).pods.matched == 5_000


async def test_restart_forgets_nothing_that_the_status_says() -> None:
    tracked = TrackedPods()
    found = loading(tracked)
    await report_of(found)
    tracked.download("10.0.0.1", age=90)
    await found.check()
    before = await report_of(found)
    tracked.write(before)
    tracked.seen, tracked.up, tracked.downloads = {}, 1.0, 0
    after = loading(tracked)
    assert (await report_of(after)).pods == before.pods, (
        "not written again before replicas were asked"
    )
    assert (await report_of(after)).loaded.same_state(before.loaded)
    await after.check()
    assert (await report_of(after)).pods.fetched == 1
    assert (await report_of(after)).pods.missing[0].reason == "NotKnown", (
        "it could have asked unseen"
    )


async def test_status_for_another_selector_is_not_used_for_these_pods() -> None:
    tracked = TrackedPods()
    found = loading(tracked)
    await report_of(found)
    tracked.download("10.0.0.1", age=90)
    tracked.download("10.0.0.2", age=90)
    await found.check()
    tracked.write(await report_of(found))
    tracked.seen, tracked.up, tracked.downloads = {}, 1.0, 0
    tracked.pods, tracked.generation = [pod("c", "10.0.0.3"), pod("d", "10.0.0.4")], 3
    after = loading(tracked)
    await report_of(after)
    await after.check()
    assert ((await report_of(after)).pods.fetched, (await report_of(after)).loaded.reason) == (
        0,
        "NotKnown",
    )


async def test_missed_start_or_readiness_of_a_pod_is_found_by_the_next_check() -> None:
    late = pod("a", "10.0.0.1")
    unready = msgspec.structs.replace(late, ready=False)
    for before in (unready, pod("a", "", started=0)):
        tracked = TrackedPods(pods=[before])
        found = loading(tracked)
        await report_of(found)
        await found.check()
        assert (await report_of(found)).loaded.reason == "NotReady"
        tracked.pods, tracked.touched = [late], 0
        await found.check()
        assert tracked.touched == 1
        assert (await report_of(found)).loaded.reason == "NeverAsked"
        tracked.touched = 0
        await found.check()
        assert not tracked.touched, "nothing moves any more"


async def test_download_from_an_address_that_is_shown_late_counts() -> None:
    tracked = TrackedPods(pods=[pod("a", "", started=NOW - 20)])
    found = loading(tracked)
    await report_of(found)
    tracked.download("10.0.0.1", age=5)
    await found.check()
    assert (await report_of(found)).pods.fetched == 0
    tracked.pods = [pod("a", "10.0.0.1", started=NOW - 20)]
    await found.check()
    assert (await report_of(found)).pods.fetched == 1


async def test_download_that_came_before_its_pod_was_looked_at_counts() -> None:
    """The status of an object may wait for a minute; its sidecars send requests within a second."""
    tracked = TrackedPods(pods=[pod("a", "10.0.0.1")])
    found = loading(tracked)
    await report_of(found)
    tracked.download("10.0.0.1", age=90)
    await found.check()
    assert (await report_of(found)).loaded.status == "True"
    tracked.pods = [*tracked.pods, pod("late", "10.0.0.3", started=NOW + 10)]
    tracked.now = NOW + 80
    tracked.download("10.0.0.3", age=68)
    await found.check()  # all known Pods have it
    assert (await report_of(found)).loaded.reason == "Waiting", (
        "nobody asked for what was news meanwhile"
    )
    await found.check()
    assert (await report_of(found)).pods.fetched == 2


async def test_answer_that_is_older_than_the_news_is_not_used() -> None:
    tracked = TrackedPods()
    peer_query = PeerQuery(tracked)
    found = loading(tracked, peer_query=peer_query, interval=10.0)
    await report_of(found)
    tracked.queries.clear()
    await peer_query.query(f"/seen/{A}")  # healing's
    await asyncio.sleep(0.01)
    tracked.download("10.0.0.1", age=1)
    await found.check()
    assert (await report_of(found)).pods.fetched == 1


async def test_answers_to_the_queries_of_longest_ago_are_forgotten() -> None:
    tracked = TrackedPods()
    peer_query = PeerQuery(tracked)
    paths = [f"/seen/{number}" for number in range(33)]
    for path in paths:
        await peer_query.query(path)
    tracked.queries.clear()
    for path in (paths[-1], paths[0]):
        await peer_query.recent(path, within=3600.0)
    assert tracked.queries == [paths[0]]


async def test_download_of_a_deleted_pod_does_not_make_the_others_unknown() -> None:
    tracked = TrackedPods()
    found = loading(tracked)
    await report_of(found)
    tracked.download("10.0.0.1", age=90)
    await found.check()
    assert (await report_of(found)).loaded.reason == "NeverAsked"
    tracked.pods = tracked.pods[1:]
    tracked.downloads += 1
    await found.check()
    assert (await report_of(found)).loaded.reason == "NeverAsked"


async def test_never_asked_becomes_not_known_once_a_replica_is_lost() -> None:
    tracked = TrackedPods(others=["b"])
    found = loading(tracked)
    await report_of(found)
    await found.check()
    assert (await report_of(found)).loaded.reason == "NeverAsked"
    tracked.others = []
    await found.check()
    assert (await report_of(found)).loaded.reason == "NotKnown"
    tracked.others = ["b"]
    await found.check()
    assert (await report_of(found)).loaded.reason == "NeverAsked", "it was silent only"


async def test_object_without_an_envoyfilter_has_no_report() -> None:
    class Empty(TrackedPods):
        def envoyfilter(self, key: ObjectKey) -> Mapping[str, Any] | None:
            return None

    assert await loading(Empty()).report(KEY) is None


async def test_unpublished_object_has_no_report_and_no_state() -> None:
    class Gone(TrackedPods):
        live = there = True

        def envoyfilter(self, key: ObjectKey) -> Mapping[str, Any] | None:
            return super().envoyfilter(key) if self.live else None

        def document(self, key: ObjectKey) -> Mapping[str, Any] | None:
            return super().document(key) if self.there else None

    for part in ("live", "there"):
        tracked, metrics = Gone(), Metrics()
        found = loading(tracked, metrics)
        await report_of(found)
        await found.check()
        assert metrics.registry.get_sample_value("autowasm_rollout_unfinished") == 1
        setattr(tracked, part, False)
        assert await found.report(KEY) is None
        await found.check()
        assert metrics.registry.get_sample_value("autowasm_rollout_unfinished") == 0


async def test_an_object_that_was_deleted_is_counted_no_more() -> None:
    class Deleted(TrackedPods):
        def keys(self) -> frozenset[ObjectKey]:
            return frozenset()

    tracked, metrics = Deleted(), Metrics()
    found = loading(tracked, metrics)
    await report_of(found)
    await found.check()
    assert metrics.registry.get_sample_value("autowasm_rollout_unfinished") == 0
    assert tracked.touched == 0


async def test_time_of_the_report_changes_only_with_its_content() -> None:
    tracked = TrackedPods()
    found = loading(tracked)
    first = await report_of(found)
    assert first.pods.time == stamp(NOW)
    tracked.write(first)
    tracked.now = NOW + 30
    assert (await report_of(found)).pods.time == stamp(NOW)
    tracked.download("10.0.0.1", age=1)
    await found.check()
    assert (await report_of(found)).pods.time == stamp(NOW + 30)


async def test_the_latest_of_several_strangers_counts() -> None:
    """Requests from addresses without a Pod: one before the Pods started, one since."""
    tracked = TrackedPods(pods=[pod("a", "10.0.0.1", started=NOW - 1_000)], published=NOW - 500)
    tracked.seen = {"10.9.9.1": {"ok": 2_000.0}, "10.9.9.2": {"ok": 100.0}}
    found = loading(tracked)
    await report_of(found)
    await found.check()
    assert (await report_of(found)).loaded.reason == "Unattributed"


async def test_condition_of_an_object_without_a_generation_observes_generation_0() -> None:
    class Unnumbered(TrackedPods):
        def document(self, key: ObjectKey) -> Mapping[str, Any] | None:
            return {"metadata": {"name": key.name}, "status": {}}

    assert (await report_of(loading(Unnumbered()))).loaded.observed_generation == 0


@pytest.mark.looptime
async def test_the_leader_looks_at_each_interval_and_a_new_leader_begins_with_nothing() -> None:
    tracked, metrics = TrackedPods(), Metrics()
    tenure = Tenure(lambda _: None)
    found = loading(tracked, metrics, interval=10.0)
    running = asyncio.create_task(found.run(tenure))
    try:
        await asyncio.sleep(25)
        assert tracked.queries == [], "it does not lead"
        tenure.extend(asyncio.get_running_loop().time() + 1_000)
        await asyncio.sleep(1)
        await report_of(found)
        tracked.download("10.0.0.1", age=5)
        assert tracked.queries == []
        await asyncio.sleep(10)
        assert tracked.queries == ["/seen", f"/seen/{A}"]
        assert (await report_of(found)).pods.fetched == 1
        await asyncio.sleep(20)
        assert tracked.queries[2:] == ["/seen"], "what is fresh enough is not asked for again"
        value = metrics.registry.get_sample_value
        assert value("autowasm_rollout_unfinished") == 1
        tenure.end()
        await asyncio.sleep(1)
        assert value("autowasm_rollout_unfinished") == 0
        queried = len(tracked.queries)
        await asyncio.sleep(50)
        assert len(tracked.queries) == queried
        tenure.extend(asyncio.get_running_loop().time() + 1_000)
        await asyncio.sleep(1)
        assert (await report_of(found)).pods.fetched == 0, "what it saw is forgotten"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
