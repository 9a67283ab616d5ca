"""Health and metrics."""

import asyncio
import gzip

import pytest
import structlog
from aiohttp import web
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from autowasm.limits import ServeLimits
from autowasm.server.admin import Health
from autowasm.server.app import AdminServer
from autowasm.telemetry.metrics import Metrics
from tests.parts import wire


async def test_answers_requests_of_kubelet_and_prometheus() -> None:
    health, metrics = Health(), Metrics()
    server = AdminServer(health, metrics=metrics)
    base = f"http://127.0.0.1:{await server.start('127.0.0.1:0')}"
    try:
        index = await wire.get(base + "/")
        assert all(name in index.body for name in (b"/healthz", b"/readyz", b"/metrics"))
        assert (await wire.get(base + "/healthz")).status == 200
        unready = await wire.get(base + "/readyz")
        assert unready.status == 503
        health.set("blobs", True, "3 stored")
        health.set("start-up", False, "waiting for the first list")
        unready = await wire.get(base + "/readyz")
        assert unready.status == 503
        assert b"start-up: failed (waiting for the first list)" in unready.body
        health.set("start-up", True)
        assert (await wire.get(base + "/readyz")).status == 200
        health.stopping()
        stopping = await wire.get(base + "/readyz")
        assert stopping.status == 503
        assert b"stopping" in stopping.body
        metrics.blobs.set(7)
        plain = await wire.get(base + "/metrics")
        assert b"autowasm_blobs 7.0" in plain.body
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        open_metrics = await wire.get(base + "/metrics", headers=accept)
        assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
        families = text_string_to_metric_families(open_metrics.body.decode())
        assert "autowasm_blobs" in {family.name for family in families}
        packed = await wire.get(base + "/metrics", headers={"accept-encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip"
        assert b"autowasm_blobs 7.0" in gzip.decompress(packed.body)
        some = await wire.get(base + "/metrics?name[]=autowasm_blobs")
        assert some.body.count(b"\n") == 3
        for answer in (index, unready, plain, await wire.get(base + "/nothing")):
            assert answer.headers["server"] == "wasmer"
        assert (await wire.request("HEAD", base + "/healthz")).status == 200
    finally:
        async with asyncio.timeout(60):
            await server.stop(1.0)
            await server.stop(1.0)


async def test_a_silent_client_is_cut() -> None:
    limits = ServeLimits(request_timeout=0.3)
    server = AdminServer(Health(), metrics=Metrics(), limits=limits)
    port = await server.start("127.0.0.1:0")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HT")
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()
    await server.stop(1.0)


async def test_malformed_requests_get_400_and_log_no_traceback() -> None:  # see conftest.py
    server = AdminServer(Health(), metrics=Metrics())
    port = await server.start("127.0.0.1:0")
    for request in (
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"\0\0\r\n\r\n",
        b"GET / HTTP/1.1\r\nx\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        async with asyncio.timeout(60):
            assert b" 400 " in await reader.readline()
        writer.close()
    await server.stop(1.0)


async def test_answer_that_does_not_end_holds_the_stop_no_longer_than_its_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asyncio.Event()

    async def never(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    def application(*_: object) -> web.Application:
        made = web.Application()
        made.router.add_get("/", never)
        return made

    monkeypatch.setattr("autowasm.server.app.admin_application", application)
    server = AdminServer(Health(), metrics=Metrics())
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.start("127.0.0.1:0"))
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(60):
        await asked.wait()
        with structlog.testing.capture_logs() as events:
            await server.stop(0.1)
        assert [event["event"] for event in events] == ["admin port did not close in time"]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", writer.get_extra_info("peername")[1])
    writer.close()
    assert await reader.read() == b""
