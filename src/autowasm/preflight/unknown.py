"""Unknown: no verdict on a module, because of wasmer, its machine or its limits. It is never the module's fault.

Invariant: reasons are stable and bounded in number: they are condition reasons and metric labels.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Reason(StrEnum):
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
    """`message` is one line for a status, and says what happened."""

    reason: Reason
    message: str

    @classmethod
    def internal_error(cls) -> Self:
        """A bug of wasmer. The log has the traceback."""
        return cls(Reason.INTERNAL_ERROR, "a bug in wasmer; its log has the traceback")


class NoVerdict(Exception):
    """Carries an `Unknown` to `Preflight.judge`, which returns it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.unknown = Unknown(reason, message)
