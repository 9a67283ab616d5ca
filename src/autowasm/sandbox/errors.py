"""Exceptions of the sandbox: those that its callers must expect, and those that end a running module.

Invariant: whatever a module does, the public functions of this package raise nothing else, and most failures are results (`StartFailure`,
`Exchange`), not exceptions.
"""

from enum import StrEnum


class SandboxError(Exception):
    """Base of the errors that the sandbox raises."""


class CannotCompile(SandboxError):
    """The engine cannot compile the module. Envoy may be able to: it has legacy exception handling, for instance."""


class CannotLoad(SandboxError):
    """Stored machine code belongs to another engine or is damaged. Compile the module again."""


class UsageError(SandboxError):
    """The caller used a virtual machine in the wrong order, such as a request before the start."""


class FailureKind(StrEnum):
    """Why a call into a module ended. The values are stable: they cross a process boundary."""

    RETURNED_FALSE = "returned false"
    """The module itself refused."""
    TRAP = "trap"
    FORBIDDEN_CALL = "forbidden call"
    """A host function in a phase in which Envoy does not allow it; Envoy calls that "restricted_callback"."""
    LINK = "link"
    """Envoy does not offer the import, or not with that type; or an export is missing or has another type."""
    CRASH = "crash"
    """The module crashes Envoy itself, with all its connections."""
    LIMIT = "limit"
    """A limit of the sandbox, not of Envoy: it says nothing about Envoy."""
    UNSUPPORTED = "unsupported"
    """The sandbox lacks an extension or a feature of the engine that the module needs; Envoy may have it."""


class ModuleFailed(SandboxError):
    """A call into the module did not return. Raised and handled within the sandbox.

    `function` is the export that was called, `frames` are the names of the functions that were running, innermost first.
    """

    def __init__(
        self, kind: FailureKind, message: str, *, function: str = "", frames: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.function = function
        self.frames = frames
