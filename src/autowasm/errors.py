"""Exceptions, one class for each reaction of the caller (docs/architecture.md, Errors).

The cause is in `reason` (a condition reason, also a metric label) and in the message: the problem, its place, and the remedy.
Invariants: a message never holds a credential or the query of a URL, so it can go into a status, an Event and a log as it
is; an `Advice` names only flags, fields and commands of the program that reports the error.
Not the errors of the Kubernetes API (see `kube/errors.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from autowasm.reasons import Reason


class AutoWasmError(Exception):
    """Base of every error that AutoWasm raises on purpose.

    `reason` is CamelCase, bounded in number, and stable: users write alerts on it.
    """

    default_reason: ClassVar[Reason] = Reason.INTERNAL_ERROR

    def __init__(self, message: str, *, reason: Reason | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason


_MAX_TOLD: Final = 10
"""Errors of one object in one message."""


class SpecError(AutoWasmError):
    """The object is wrong. Do not retry until its spec changes.

    `field` is the path as a user writes it: `spec.filter.source`. `field` and `problem` may hold text of the object, so both
    are cut and made one line of printable characters.
    """

    default_reason = Reason.INVALID_SPEC

    def __init__(self, field: str, problem: str, *, reason: Reason | None = None) -> None:
        field, problem = _one_line(field, most=500), _one_line(problem, most=2000)
        super().__init__(f"{field}: {problem}", reason=reason)
        self.field = field
        self.problem = problem
        self.parts: tuple[SpecError, ...] = (self,)
        """The errors of the object: only this one, or those that were passed to `joined`."""

    @classmethod
    def joined(cls, errors: Sequence["SpecError"]) -> "SpecError":
        """One error with the fields and problems of all, at least one; its message has the first ones."""
        if len(errors) == 1:
            return errors[0]
        first, *others = errors
        told = [str(each) for each in others[: _MAX_TOLD - 1]]
        more = len(errors) - _MAX_TOLD
        if more > 0:
            told.append(f"and {more} more errors" if more > 1 else "and one more error")
        result = cls(first.field, "; ".join([first.problem, *told]), reason=first.reason)
        result.parts = tuple(errors)
        return result


class SourceNotFound(AutoWasmError):
    """The registry or server answered that the image or object does not exist. Retry slowly."""

    default_reason = Reason.SOURCE_NOT_FOUND


class SourceDenied(AutoWasmError):
    """The registry or server refused this credential, or anonymous access. Retry slowly.

    Few attempts only: many registries lock an account after repeated wrong passwords.
    """

    default_reason = Reason.UNAUTHORIZED


class SecretAccessForbidden(SourceDenied):
    """The API server refused to let wasmer read a Secret or a ServiceAccount; no request went to a registry. Retry with backoff.

    An API server that has just started refuses every request that RBAC allows until it has read the roles.
    """

    default_reason = Reason.SECRET_FORBIDDEN


class SourceUnavailable(AutoWasmError):
    """No answer, or one that asks for a later retry. Retry with backoff.

    `retry_after` is the server's Retry-After, in seconds from now.
    """

    default_reason = Reason.SOURCE_UNAVAILABLE

    def __init__(
        self, message: str, *, reason: Reason | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, reason=reason)
        self.retry_after = retry_after


class ContentRejected(AutoWasmError):
    """The bytes arrived but are not acceptable. Do not fetch the same bytes again."""

    default_reason = Reason.CONTENT_REJECTED


class AddressBlocked(AutoWasmError):
    """The address policy forbids the connection. Do not retry until the spec or the policy changes."""

    default_reason = Reason.ADDRESS_NOT_ALLOWED


class StorageError(AutoWasmError):
    """The disk of wasmer failed or is full. Retry with backoff; stored blobs stay valid."""

    default_reason = Reason.STORAGE_UNAVAILABLE


class UsageError(AutoWasmError):
    """A flag or setting is wrong. The program ends with exit status 2."""

    default_reason = Reason.USAGE


def _one_line(text: str, *, most: int) -> str:
    head = text[:most]
    if not head.isprintable():
        head = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return head if len(text) <= most else f"{head}…"


@dataclass(frozen=True, slots=True)
class Advice:
    """The corrections of an error, in the terms of one program. Phrases for the end of a sentence."""

    ca_file: str
    insecure: str
    plain_http: str
    no_plain_http: str
    """How to disable plain http again, for a host that has TLS."""
    login: str
    """A sentence that begins in lower case; `{host}` stands for the registry."""

    def log_in(self, host: str) -> str:
        """How to configure a login for `host`."""
        return self.login.replace("{host}", host)


WASMER: Final = Advice(
    ca_file="wasmer --registry-ca-file",
    insecure="wasmer --insecure-registry",
    plain_http="wasmer --plain-http-registry",
    no_plain_http="remove the host from wasmer --plain-http-registry",
    login="name a pull secret for {host} in spec.secret",
)

WASMC: Final = Advice(
    ca_file="--ca-file",
    insecure="--insecure",
    plain_http="--plain-http",
    no_plain_http="omit --plain-http",
    login="log in with `wasmc login {host}` or `docker login {host}`, or use --username and --password-stdin",
)
