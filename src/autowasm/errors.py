"""The exception tree: each class says what the caller should do next (docs/architecture.md, Errors).

Not a catalogue of causes: the cause is `reason` (a condition reason, also a metric label) and the message, a sentence
for a person that says what is wrong, where, and what to do. Invariant: a message never holds a credential or the query
of a URL, so it can go into a status, an Event and a log as it is.

Errors of the Kubernetes API have a tree of their own in `autowasm.kube.errors`.

Advice: how the reader of an error changes what is wrong, in the words of the program that reports it.

Not the errors. Invariant: an advice names a flag, a field or a command that exists in that program.
"""

from dataclasses import dataclass
from typing import ClassVar, Final


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


@dataclass(frozen=True, slots=True)
class Advice:
    """Phrases for the end of a sentence: `name its authority with {ca_file}`."""

    ca_file: str
    insecure: str
    plain_http: str
    no_plain_http: str
    """How plain http is taken back, for a host that has TLS."""
    login: str
    """A sentence without a capital letter; `{host}` stands for the registry."""

    def log_in(self, host: str) -> str:
        """How a login for `host` is given."""
        return self.login.replace("{host}", host)


WASMER: Final = Advice(
    ca_file="wasmer --registry-ca-file",
    insecure="wasmer --insecure-registry",
    plain_http="wasmer --plain-http-registry",
    no_plain_http="take the host out of wasmer --plain-http-registry",
    login="name a pull secret for {host} in spec.secret",
)

WASMC: Final = Advice(
    ca_file="--ca-file",
    insecure="--insecure",
    plain_http="--plain-http",
    no_plain_http="leave --plain-http out",
    login="log in with `docker login {host}`, or give --username and --password-stdin",
)
