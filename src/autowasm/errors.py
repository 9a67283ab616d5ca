"""The exception tree: each class says what the caller should do next (docs/architecture.md, Errors).

Not a catalogue of causes: the cause is `reason` (a condition reason, also a metric label) and the message, a sentence
for a person that says what is wrong, where, and what to do. Invariant: a message never holds a credential or the query
of a URL, so it can go into a status, an Event and a log as it is.

Errors of the Kubernetes API have a tree of their own in `autowasm.kube.errors`.
"""

from typing import ClassVar


class AutoWasmError(Exception):
    """Base of every error that we raise on purpose.

    `reason` is CamelCase, bounded in number, and stable: users write alerts on it.
    """

    default_reason: ClassVar[str] = "InternalError"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason


class SpecError(AutoWasmError):
    """The object is wrong. Do not try again until its spec changes.

    `field` is the path as a user would write it: `spec.filter.source`. Both parts may hold what an author wrote, so they
    are made one line of printable characters, and cut.
    """

    default_reason = "InvalidSpec"

    def __init__(self, field: str, problem: str, *, reason: str | None = None) -> None:
        field, problem = _one_line(field, most=500), _one_line(problem, most=2000)
        super().__init__(f"{field}: {problem}", reason=reason)
        self.field = field
        self.problem = problem


class SourceNotFound(AutoWasmError):
    """The registry or server answered, and what was asked for is not there. Try again slowly."""

    default_reason = "SourceNotFound"


class SourceDenied(AutoWasmError):
    """The registry or server refused this credential, or anonymous access. Try again slowly.

    Few attempts only: many registries lock an account after repeated wrong passwords.
    """

    default_reason = "Unauthorized"


class SecretAccessForbidden(SourceDenied):
    """The API server refused to let wasmer read a Secret or a ServiceAccount; no registry was asked. Try again with backoff.

    An API server that has just started refuses every request that RBAC allows until it has read the roles.
    """

    default_reason = "SecretForbidden"


class SourceUnavailable(AutoWasmError):
    """No answer, or one that says "later". Try again with backoff.

    `retry_after` is what the server asked for, in seconds from now.
    """

    default_reason = "SourceUnavailable"

    def __init__(
        self, message: str, *, reason: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, reason=reason)
        self.retry_after = retry_after


class ContentRejected(AutoWasmError):
    """The bytes arrived and are not acceptable. The same bytes will never be: do not fetch them again."""

    default_reason = "ContentRejected"


class AddressBlocked(AutoWasmError):
    """The address policy forbids the connection. Do not try again until the spec or the policy changes."""

    default_reason = "AddressNotAllowed"


class StorageError(AutoWasmError):
    """Our own disk failed or is full. Try again with backoff; blobs already stored stay good."""

    default_reason = "StorageUnavailable"


class UsageError(AutoWasmError):
    """A command line or setting is wrong. Ends the program with exit status 2."""

    default_reason = "Usage"


def _one_line(text: str, *, most: int) -> str:
    head = text[:most]
    if not head.isprintable():
        head = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return head if len(text) <= most else f"{head}…"
