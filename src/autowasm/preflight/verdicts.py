"""The result of a pre-flight: a verdict, or Unknown; and the verdicts in memory, by module and request.

Unknown means that there is no verdict because of wasmer, its machine or its limits. It is never the module's fault. The cache
also keeps that the engine cannot compile a module, which does not change either. Invariants: reasons are stable and bounded in
number, because they are metric labels and begin messages; verdicts are bounded in number and bytes; the least recently used is
dropped first. Not on disk: records keep the verdicts that matter after a restart.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from autowasm.digest import Sha256Hex
from autowasm.limits import PreflightLimits
from autowasm.sandbox.verdict import Verdict


class NoVerdictReason(StrEnum):
    """Why there is no verdict."""

    CANNOT_COMPILE = "CannotCompile"
    """The engine lacks a feature that Envoy may have, such as legacy exception handling."""
    CANNOT_LOAD = "CannotLoad"
    """Code from the cache does not fit this machine, even after it was compiled again."""
    CRASHED = "Crashed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    INTERNAL_ERROR = "InternalError"
    INVALID_ANSWER = "InvalidAnswer"
    ISOLATION_UNAVAILABLE = "IsolationUnavailable"
    """The kernel cannot isolate the child, so the module did not run."""
    MODULE_UNAVAILABLE = "ModuleUnavailable"
    """The module's file is missing or damaged."""
    NOT_STARTED = "NotStarted"
    """The fork server is not running, or could not fork."""
    OUT_OF_MEMORY = "OutOfMemory"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    TOO_LARGE = "TooLarge"
    TOO_MANY_REQUESTS = "TooManyRequests"


@dataclass(frozen=True, slots=True)
class Unknown:
    """`message` is one line for a status, and describes the cause."""

    reason: NoVerdictReason
    message: str

    @classmethod
    def internal_error(cls) -> Self:
        """A bug of wasmer. The log has the traceback."""
        return cls(NoVerdictReason.INTERNAL_ERROR, "a bug in wasmer; its log has the traceback")


class NoVerdict(Exception):
    """Carries an `Unknown` to `Preflight.judge`, which returns it."""

    def __init__(self, reason: NoVerdictReason, message: str) -> None:
        super().__init__(message)
        self.unknown = Unknown(reason, message)


class VerdictKey(NamedTuple):
    """Everything that a verdict depends on: `request` is the hash of plugin and limits, `engine` the version of the sandbox."""

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
        """The verdict, if it is cached."""
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
