"""Verdicts in memory, by module and request; also that the engine cannot compile a module, which does not change either.

Invariant: at most so many, and so many bytes; the least recently used is dropped first. Not on disk: records keep the
verdicts that matter after a restart.
"""

from collections import OrderedDict
from typing import NamedTuple

from autowasm.digest import Sha256Hex
from autowasm.limits import PreflightLimits
from autowasm.preflight.unknown import Unknown
from autowasm.sandbox.verdict import Verdict


class VerdictKey(NamedTuple):
    """All that a verdict depends on: `request` is the hash of plugin and limits, `engine` the version of the sandbox."""

    sha256: Sha256Hex
    request: bytes
    engine: str


class Verdicts:
    """A cache of verdicts."""

    def __init__(self, limits: PreflightLimits) -> None:
        self._limits = limits
        self._verdicts: OrderedDict[VerdictKey, tuple[Verdict | Unknown, int]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._verdicts)

    def get(self, key: VerdictKey) -> Verdict | Unknown | None:
        """The verdict, if it is there."""
        if key not in self._verdicts:
            return None
        self._verdicts.move_to_end(key)
        return self._verdicts[key][0]

    def put(self, key: VerdictKey, verdict: Verdict | Unknown, *, size: int) -> None:
        """Keep a verdict of `size` bytes."""
        self._bytes += size - self._verdicts.pop(key, (verdict, 0))[1]
        self._verdicts[key] = verdict, size
        while (
            len(self._verdicts) > self._limits.verdicts or self._bytes > self._limits.verdict_bytes
        ):
            _, (_, dropped) = self._verdicts.popitem(last=False)
            self._bytes -= dropped
