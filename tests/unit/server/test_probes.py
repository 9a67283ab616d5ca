"""Health and Heartbeat."""

from autowasm.server.probes import Health, Heartbeat


def test_nothing_checked_is_not_ready() -> None:
    health = Health()
    assert not health.is_ready
    assert "nothing was checked" in health.report()


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
