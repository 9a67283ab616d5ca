"""Last uses over restarts, with clocks that are set, boots, and files that are no good."""

import math
from pathlib import Path

import pytest

from autowasm.blobs import lastuse
from autowasm.blobs.lastuse import MAX_DOWNTIME, ClockState, LastUse
from autowasm.digest import Sha256Hex
from tests.fakes.autowasms import digest
from tests.fakes.clocks import FakeClocks

A, B, C = digest("a"), digest("b"), digest("c")
HOUR = 3600.0
YEARS = 20 * 365 * 24 * HOUR


@pytest.fixture
def clocks() -> FakeClocks:
    return FakeClocks()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "last-use.json"


def load(file: Path, clocks: FakeClocks) -> LastUse:
    return lastuse.load(file, moment=clocks.moment, monotonic=clocks.monotonic)


def restart(last_use: LastUse, file: Path, clocks: FakeClocks, *, away: float = 0.0) -> LastUse:
    """Save, end, begin again `away` seconds later on the same boot, with a monotonic clock of its own."""
    lastuse.save(file, last_use.encode(clocks.moment()))
    clocks.advance(away)
    clocks.process = 77.0
    return load(file, clocks)


def unused_for(last_use: LastUse, sha256: Sha256Hex) -> float:
    return last_use.clock.now() - last_use.last(sha256)


def observe(last_use: LastUse, *named: Sha256Hex, complete: bool = True) -> bool:
    return last_use.observe([A, B], named.__contains__, complete=complete)


def test_last_use_is_the_last_time_an_object_named_the_blob(file: Path, clocks: FakeClocks) -> None:
    last_use = load(file, clocks)
    assert observe(last_use, A, B)
    clocks.advance(HOUR)
    assert observe(last_use, A)  # B was named until just now
    assert not observe(last_use, A)
    clocks.advance(HOUR)
    observe(last_use, A)
    assert unused_for(last_use, A) == pytest.approx(0, abs=1)
    assert unused_for(last_use, B) == pytest.approx(HOUR, abs=1)
    last_use.served(B, clocks.monotonic() - 60)
    last_use.served(B, float("-inf"))
    last_use.served(C, clocks.monotonic())  # not ours
    assert unused_for(last_use, B) == pytest.approx(60, abs=1)


def test_a_restart_keeps_it_and_counts_the_absence(file: Path, clocks: FakeClocks) -> None:
    last_use = load(file, clocks)
    observe(last_use, A)
    clocks.advance(2 * HOUR)
    observe(last_use, A)
    last_use = restart(last_use, file, clocks, away=5 * HOUR)
    observe(last_use)
    assert unused_for(last_use, B) == pytest.approx(7 * HOUR, abs=1)


def test_blob_pinned_at_the_last_write_is_young_after_any_outage(
    file: Path, clocks: FakeClocks
) -> None:
    last_use = load(file, clocks)
    observe(last_use, A)
    last_use = restart(last_use, file, clocks, away=100 * HOUR)
    observe(last_use, complete=False)  # the API server is down
    clocks.advance(100 * HOUR)
    observe(last_use, complete=False)
    assert unused_for(last_use, A) == pytest.approx(0, abs=1)
    assert unused_for(last_use, B) == pytest.approx(200 * HOUR, abs=1)
    last_use = restart(last_use, file, clocks)
    observe(last_use)  # the file is there again: no object names it any more
    assert unused_for(last_use, A) == pytest.approx(0, abs=1)
    clocks.advance(HOUR)
    observe(last_use)
    assert unused_for(last_use, A) == pytest.approx(HOUR, abs=1)


def test_blob_missing_in_the_file_is_young_until_all_pins_are_known(
    file: Path, clocks: FakeClocks
) -> None:
    last_use = load(file, clocks)
    observe(last_use, complete=False)
    clocks.advance(100 * HOUR)
    observe(last_use)
    assert unused_for(last_use, A) == pytest.approx(0, abs=1)


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
def test_a_clock_that_jumps_while_we_run_or_are_away_changes_nothing(
    file: Path, clocks: FakeClocks, jump: float
) -> None:
    last_use = load(file, clocks)
    observe(last_use)
    clocks.wall += jump
    clocks.advance(HOUR)
    observe(last_use)
    assert unused_for(last_use, A) == pytest.approx(HOUR, abs=1)
    lastuse.save(file, last_use.encode(clocks.moment()))
    clocks.wall -= 2 * jump
    last_use = restart(last_use, file, clocks, away=60)
    observe(last_use)
    assert unused_for(last_use, A) == pytest.approx(HOUR + 60, abs=1)


@pytest.mark.parametrize(
    ("away", "credited"), [(60.0, 60.0), (YEARS, MAX_DOWNTIME), (-YEARS, 0.0), (math.nan, 0.0)]
)
def test_wall_clock_counts_for_at_most_an_hour_across_a_reboot(
    file: Path, clocks: FakeClocks, away: float, credited: float
) -> None:
    last_use = load(file, clocks)
    observe(last_use)
    lastuse.save(file, last_use.encode(clocks.moment()))
    clocks.reboot(away)
    last_use = load(file, clocks)
    assert unused_for(last_use, A) == pytest.approx(credited, abs=1)


def test_running_time_counts_although_the_clock_jumps_at_boot(
    file: Path, clocks: FakeClocks
) -> None:
    last_use = load(file, clocks)
    observe(last_use)
    for _ in range(30):
        clocks.advance(HOUR)
        lastuse.save(file, last_use.encode(clocks.moment()))
        clocks.reboot(-YEARS)
        last_use = load(file, clocks)
        observe(last_use)
    assert unused_for(last_use, A) == pytest.approx(30 * HOUR, abs=5)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"version":2,"saved":{"boot":"","since_boot":0,"wall":0},"age":0,"used":{}}',
        b'{"version":1,"saved":{"boot":"","since_boot":0,"wall":0},"age":-1e300,"used":{}}',
        b'{"version":1,"saved":{"boot":"","since_boot":0,"wall":0},"age":1e999,"used":{}}',
        b'{"version":1,"saved":{"boot":"","since_boot":0,"wall":0},"age":5,"used":{"../x":3,"%s":1e300}}'
        % A.encode(),
    ],
)
def test_an_invalid_last_use_file_makes_every_blob_young(
    file: Path, clocks: FakeClocks, content: bytes
) -> None:
    file.write_bytes(content)
    last_use = load(file, clocks)
    observe(last_use)
    assert unused_for(last_use, A) == pytest.approx(0, abs=1)
    assert unused_for(last_use, B) == pytest.approx(0, abs=1)


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path, file: Path) -> None:
    lastuse.save(file, b"good")
    (tmp_path / "last-use.json.new").mkdir()  # in the way
    with pytest.raises(OSError, match=r"last-use\.json\.new"):
        lastuse.save(file, b"bad")
    assert file.read_bytes() == b"good"


def test_the_real_durable_clock_advances() -> None:
    first = ClockState.now()
    second = ClockState.now()
    assert 0 <= first.passed_until(second) < 60
    assert Path("/proc/sys/kernel/random/boot_id").exists() == bool(first.boot)


def test_missing_boot_id_is_treated_as_a_reboot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lastuse, "_BOOT_ID", tmp_path / "none")
    moment = ClockState.now()
    assert moment.boot == ""
    later = ClockState(boot="", since_boot=moment.since_boot + 5, wall=moment.wall + YEARS)
    assert moment.passed_until(later) == MAX_DOWNTIME
