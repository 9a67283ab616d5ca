"""Durations (`30s`, `1h30m`, `250ms`) and byte sizes (`4Gi`, `32Mi`, `500M`) as Kubernetes and Go write them.

Invariant: `parse_duration` reads every text that `format_duration` returns.
"""

import re

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{1,18})?)"
_DURATION_PART = re.compile(rf"{_NUMBER}(ms|s|m|h|d)")
_SIZE = re.compile(rf"{_NUMBER}(Ki|Mi|Gi|Ti|k|K|M|G|T)?B?\Z")
_SIZE_UNITS = {
    "": 1,
    "k": 1000,
    "K": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "T": 1000**4,
    "Ki": 1024,
    "Mi": 1024**2,
    "Gi": 1024**3,
    "Ti": 1024**4,
}


def parse_duration(text: str) -> float:
    """Seconds. A bare `0` is allowed; every other number needs a unit. Raises ValueError."""
    if text == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(text):
        part = _DURATION_PART.match(text, position)
        if part is None:
            break
        total += float(part[1]) * _DURATION_UNITS[part[2]]
        position = part.end()
    if not text or position != len(text):
        raise ValueError(f"not a duration (expected a form like 30s, 5m or 1h30m): {text[:40]!r}")
    return total


def format_duration(seconds: float) -> str:
    """The shortest exact form in h, m, s or ms: 5400 becomes `1h30m`. Rounded to milliseconds."""
    milliseconds = round(seconds * 1000)
    parts = []
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_size(text: str) -> int:
    """Bytes. `4Gi` is 4 × 2^30, `4G` is 4 × 10^9. Raises ValueError."""
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"not a size (expected a form like 512Mi, 4Gi or 1000000): {text[:40]!r}")
    number, unit = match[1], _SIZE_UNITS[match[2] or ""]
    return int(number) * unit if number.isdigit() else int(float(number) * unit)


def format_size(count: int) -> str:
    """For people, one decimal at most: 33554432 becomes `32 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    raise AssertionError("unreachable: the loop ends at GiB")
