"""The machine of the figures: its processor and kernel, and whether other load disturbs the figures.

Not a correction of figures: they stay as they were. Invariant: a run on a machine with other load reports it.
"""

import hashlib
import os
import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

NOISY = 0.15
"""Spread of a fixed piece of work above which differences of a tenth are not significant; a quiet virtual machine has 0.05 to 0.12."""
BUSY = 0.25
"""Share of the cores that other programs used while none of ours ran."""

_ROUNDS, _WARM_UP = 25, 5
_BLOCK = b"\0" * (1 << 20)
_LIBRARIES = ("aiohttp", "msgspec", "kubernetes-asyncio", "oras", "wasmtime", "kopf")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fixed piece of work, repeated: `spread` is (90th percentile - median) / median of its times."""

    seconds: float
    spread: float
    others: float
    """Share of all cores that other programs used meanwhile."""

    @property
    def verdict(self) -> str:
        """Empty if the figures are reliable, else the reason why not."""
        reasons = []
        if self.spread > NOISY:
            reasons.append(f"the same work takes {self.spread:.0%} longer now and then")
        if self.others > BUSY:
            reasons.append(f"other programs use {self.others:.0%} of the processors")
        return " and ".join(reasons)


def calibrate() -> Calibration:
    """Takes about a second. Hashing and interpreting, because the measured code does both."""
    times: list[float] = []
    total, idle, own = *_processors(), time.process_time()
    for number in range(_ROUNDS + _WARM_UP):
        begun = time.perf_counter()
        for _ in range(4):
            hashlib.sha256(_BLOCK).digest()
            sum(number * number for number in range(200_000))
        if number >= _WARM_UP:
            times.append(time.perf_counter() - begun)
    total_after, idle_after = _processors()
    used = time.process_time() - own
    wall = max(total_after - total, 0.01)
    others = max(0.0, (wall - (idle_after - idle) - used) / wall)
    middle = median(times)
    slow = sorted(times)[int(0.9 * len(times))]
    return Calibration(middle, (slow - middle) / middle, others)


def describe() -> dict[str, Any]:
    """Date, machine and versions, for readers of the figures."""
    libraries = {name: _version(name) for name in _LIBRARIES}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tcp_memory_mb": _tcp_memory(),
        "libraries": {name: version for name, version in libraries.items() if version},
    }


def as_document(calibrations: list[Calibration]) -> dict[str, Any]:
    """The load before and after a row, the highest last."""
    return {
        "rounds": [asdict(one) for one in calibrations],
        "verdict": next((one.verdict for one in calibrations if one.verdict), ""),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _tcp_memory() -> int:
    """Megabytes that all TCP sockets of the machine may use."""
    pages = int(Path("/proc/sys/net/ipv4/tcp_mem").read_text().split()[2])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


def _processors() -> tuple[float, float]:
    """Seconds of all processors so far, and of these the idle ones."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(fields) / ticks, (fields[3] + fields[4]) / ticks
