"""Health and Heartbeat."""

from aiohttp import web
from prometheus_client import CollectorRegistry

from autowasm.server.admin import Health, Heartbeat, admin_application
from tests.parts import wire


def test_nothing_checked_is_not_ready() -> None:
    health = Health()
    assert not health.is_ready
    assert "no checks have run" in health.report()


def test_ready_needs_every_check_and_no_stop() -> None:
    health = Health()
    health.set("a", True, "fine")
    health.set("b", False, "not yet")
    assert not health.is_ready
    assert health.report().splitlines() == ["not ready", "a: ok (fine)", "b: failed (not yet)"]
    health.set("b", True)
    assert health.is_ready
    health.stopping()
    assert not health.is_ready


def test_a_warning_is_shown_and_leaves_it_ready() -> None:
    health = Health()
    health.set("a", True)
    health.warn("service", "it is not there")
    assert health.is_ready
    assert health.report().splitlines() == ["ready", "a: ok", "service: warning (it is not there)"]
    health.warn("service", "")
    assert health.report().splitlines() == ["ready", "a: ok"]


def test_a_loop_that_does_not_turn_shows() -> None:
    now = [100.0]
    heartbeat = Heartbeat(lambda: now[0])
    now[0] += 42
    assert heartbeat.age == 42


async def test_a_loop_that_did_not_turn_for_long_is_not_alive() -> None:
    now = [100.0]
    heartbeat = Heartbeat(lambda: now[0])
    runner = web.AppRunner(admin_application(Health(), heartbeat, CollectorRegistry()))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/healthz"
        assert (await wire.get(url)).status == 200
        now[0] += 1000
        answer = await wire.get(url)
        assert answer.status == 503
        assert b"has been blocked for 1000 s" in answer.body
    finally:
        await runner.cleanup()
