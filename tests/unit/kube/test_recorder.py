"""Events: written, counted up, combined, limited; never in the way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from autowasm.kube.recorder import EventRecorder
from autowasm.limits import KubeLimits
from tests.unit.kube.wire import Wire, client_of, failure, json_answer

THING = {
    "apiVersion": "example.com/v1",
    "kind": "Thing",
    "metadata": {"namespace": "ns", "name": "a", "uid": "u1"},
}
OTHER = {**THING, "metadata": {"namespace": "ns", "name": "b", "uid": "u2"}}


class Outcomes(Counter[str]):
    def event(self, outcome: str) -> None:
        self[outcome] += 1


@asynccontextmanager
async def recording(
    wire: Wire,
    directory: Path,
    limits: KubeLimits | None = None,
    *,
    busy: list[str] | None = None,
    outcomes: Outcomes | None = None,
) -> AsyncIterator[EventRecorder]:
    async with client_of(wire, directory) as client:
        recorder = EventRecorder(
            client,
            component="test",
            instance="pod-1",
            limits=limits or KubeLimits(),
            busy=lambda: bool(busy),
            now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            metrics=outcomes,
        )
        task = asyncio.create_task(recorder.run())
        try:
            yield recorder
            await recorder.flush(timeout=5)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_event_names_object_reason_message_and_source(tmp_path: Path) -> None:
    wire = Wire(otherwise=json_answer({}, status=201))
    async with recording(wire, tmp_path) as recorder:
        recorder.event(THING, "Warning", "Failed", "no such image")
    request = wire.requests[0]
    assert (request.method, request.path) == ("POST", "/api/v1/namespaces/ns/events")
    document: dict[str, Any] = request.document
    assert document.pop("metadata")["name"].startswith("a.")
    assert document == {
        "apiVersion": "v1",
        "kind": "Event",
        "involvedObject": {
            "apiVersion": "example.com/v1",
            "kind": "Thing",
            "namespace": "ns",
            "name": "a",
            "uid": "u1",
        },
        "type": "Warning",
        "reason": "Failed",
        "message": "no such image",
        "count": 1,
        "firstTimestamp": "2026-01-02T03:04:05Z",
        "lastTimestamp": "2026-01-02T03:04:05Z",
        "source": {"component": "test", "host": "pod-1"},
        "reportingComponent": "test",
        "reportingInstance": "pod-1",
    }


async def test_alike_events_are_counted_up(tmp_path: Path) -> None:
    wire = Wire(otherwise=json_answer({}))
    async with recording(wire, tmp_path) as recorder:
        for _ in range(3):
            recorder.event(THING, "Normal", "Synced", "done")
        recorder.event(OTHER, "Normal", "Synced", "done")
    assert [request.method for request in wire.requests] == ["POST", "PATCH", "PATCH", "POST"]
    assert [request.document["count"] for request in wire.requests] == [1, 2, 3, 1]


async def test_an_event_that_is_no_longer_remembered_is_written_anew(tmp_path: Path) -> None:
    wire = Wire(otherwise=json_answer({}))
    async with recording(wire, tmp_path, KubeLimits(events_remembered=2)) as recorder:
        for name in (
            "a",
            "b",
            "a",
            "c",
            "b",
            "a",
        ):  # "b" is the least recently written when "c" comes
            about = {**THING, "metadata": {"name": name}}
            recorder.event(about, "Normal", "Synced", "done")
    assert [request.method for request in wire.requests] == [
        "POST", "POST", "PATCH", "POST", "POST", "POST",
    ]  # fmt: skip


async def test_an_event_that_was_deleted_is_written_anew(tmp_path: Path) -> None:
    wire = Wire(json_answer({}), failure(404, "NotFound"), json_answer({}))
    async with recording(wire, tmp_path) as recorder:
        recorder.event(THING, "Normal", "Synced", "done")
        recorder.event(THING, "Normal", "Synced", "done")
    assert [request.method for request in wire.requests] == ["POST", "PATCH", "POST"]


async def test_many_that_differ_only_in_their_text_become_one(tmp_path: Path) -> None:
    wire = Wire(otherwise=json_answer({}))
    async with recording(wire, tmp_path) as recorder:
        for number in range(14):
            recorder.event(THING, "Warning", "Failed", f"attempt {number}")
    assert [request.method for request in wire.requests] == ["POST"] * 11 + ["PATCH"] * 3
    last = wire.requests[-1].document
    assert last["message"] == "(combined from similar events): attempt 13"
    assert last["count"] == 4


async def test_one_object_cannot_flood(tmp_path: Path) -> None:
    wire, outcomes = Wire(otherwise=json_answer({})), Outcomes()
    async with recording(wire, tmp_path, outcomes=outcomes) as recorder:
        for _ in range(100):
            recorder.event(THING, "Normal", "Synced", "done")
        recorder.event(OTHER, "Normal", "Synced", "done")
        await recorder.flush(timeout=5)
    assert outcomes == {"limited": 75, "written": 26}
    assert len(wire.requests) == 26


async def test_a_full_queue_and_a_refusing_server_cost_only_events(tmp_path: Path) -> None:
    wire, outcomes = Wire(otherwise=failure(403, "Forbidden")), Outcomes()
    limits = KubeLimits(events_queued=2)
    async with recording(wire, tmp_path, limits, outcomes=outcomes) as recorder:
        for number in range(5):
            recorder.event(THING, "Normal", "Synced", f"done {number}")
        assert outcomes == {"overflow": 3}
        await recorder.flush(timeout=5)
    assert outcomes == {"overflow": 3, "failed": 2}


async def test_an_event_that_cannot_be_written_stops_no_other(tmp_path: Path) -> None:
    wire, outcomes = Wire(otherwise=json_answer({})), Outcomes()
    async with recording(wire, tmp_path, outcomes=outcomes) as recorder:
        odd = {**THING, "apiVersion": "\ud800"}  # no JSON can hold it
        recorder.event(odd, "Normal", "Synced", "odd")
        recorder.event(OTHER, "Normal", "Synced", "good")
        await recorder.flush(timeout=5)
    assert outcomes == {"failed": 1, "written": 1}
    assert [one.document["message"] for one in wire.requests] == ["good"]


async def test_events_queued_before_a_hurry_are_written_without_a_pause(tmp_path: Path) -> None:
    wire = Wire(otherwise=json_answer({}))
    limits = KubeLimits(events_burst=1, events_rate=1 / 3600)
    async with recording(wire, tmp_path, limits, busy=["key"]) as recorder:

        def record(number: int) -> None:
            about = {**THING, "metadata": {"name": str(number)}}
            recorder.event(about, "Normal", "Synced", "done")

        for number in range(20):
            record(number)
        recorder.hurry()
        async with asyncio.timeout(10):
            while len(wire.requests) < 20:
                await asyncio.sleep(0.001)
        await recorder.flush(
            timeout=10
        )  # the requests were sent; the last answer may be on its way
        record(20)  # while there is work, later ones wait again
        await asyncio.sleep(0.05)
        assert len(wire.requests) == 20


async def test_a_flush_writes_queued_events_without_a_pause(tmp_path: Path) -> None:
    wire = Wire(otherwise=json_answer({}))
    limits = KubeLimits(events_burst=1, events_rate=1 / 3600)
    async with recording(wire, tmp_path, limits, busy=["key"]) as recorder:
        for number in range(20):
            about = {**THING, "metadata": {"name": str(number)}}
            recorder.event(about, "Normal", "Synced", "done")
        with capture_logs() as logs:
            await recorder.flush(timeout=10)
    assert len(wire.requests) == 20
    assert logs == []


async def test_a_flush_ends_with_its_deadline_and_says_how_many_are_left(tmp_path: Path) -> None:
    async with client_of(Wire(otherwise=json_answer({})), tmp_path) as client:
        recorder = EventRecorder(client, component="test", instance="pod-1", limits=KubeLimits())
        recorder.event(THING, "Normal", "Synced", "nothing writes it: `run` does not run")
        with capture_logs() as logs:
            await recorder.flush(timeout=0.01)
    assert [(line["event"], line["events"]) for line in logs] == [
        ("events not written before stop", 1)
    ]


async def test_a_long_message_is_cut_to_the_limit_of_the_server(tmp_path: Path) -> None:
    wire = Wire(otherwise=json_answer({}))
    async with recording(wire, tmp_path) as recorder:
        recorder.event(THING, "Normal", "Synced", "ä" * 1000)
    message = wire.requests[0].document["message"]
    assert len(message.encode()) <= 1024
    assert message.endswith("...")


async def test_events_wait_while_there_is_work_and_are_written_at_once_without(
    tmp_path: Path,
) -> None:
    wire = Wire(otherwise=json_answer({}))
    limits = KubeLimits(events_burst=5, events_rate=1 / 3600)
    busy = ["key"]

    async def written(count: int) -> None:
        async with asyncio.timeout(10):
            while len(wire.requests) < count:
                await asyncio.sleep(0.001)

    async with recording(wire, tmp_path, limits, busy=busy) as recorder:
        for number in range(20):
            recorder.event({**THING, "metadata": {"name": str(number)}}, "Normal", "Synced", "done")
        await written(5)
        await asyncio.sleep(0.05)
        assert len(wire.requests) == 5
        busy.clear()
        await written(20)
        busy.append("key")
        for number in range(20):
            recorder.event({**OTHER, "metadata": {"name": str(number)}}, "Normal", "Synced", "done")
        await recorder.flush(timeout=5)  # a stop does not wait
        assert len(wire.requests) == 40
