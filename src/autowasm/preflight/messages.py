"""Messages between wasmer, the fork server and its children.

The control socket (SOCK_SEQPACKET) has one message in each packet: `Job` with descriptors, and `Kill`, to the fork server;
`Ready`, `Started` and `Ended` from it. A job's channel (SOCK_STREAM) belongs only to its child: one frame with the request, then
one frame with the answer, both JSON. Invariants: no tenant data is on the control socket, except `Ended.stderr`, which is bounded; a
frame that is longer than its reader allows is refused before it is read; an answer comes from a process that ran a tenant's code, so
its reader accepts any bytes and trusts none: the result is a ValueError, or an `Answer` of bounded size whose texts are lines of
printable characters; no import starts a thread, because the fork server loads this module.
"""

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Final

import msgspec

from autowasm.envoyversion import EnvoyVersion
from autowasm.limits import PreflightLimits
from autowasm.preflight.isolation import Enforced
from autowasm.sandbox.plugin import Plugin, SandboxLimits
from autowasm.sandbox.verdict import Verdict
from autowasm.text import shown

MAX_PACKET: Final = 64 * 1024
"""Bytes of one packet. The largest is `Ended`, with a few KiB of `stderr`."""
MAX_DESCRIPTORS: Final = 4
LENGTH: Final = struct.Struct("!I")
"""The length in front of a frame."""

COMPILE: Final = "compile"
"""Kind of job. Descriptors: the module for reading, a new file for the code. No request."""
RUN: Final = "run"
"""Kind of job. Descriptor: the code for reading. The request is a `Request`."""

DEADLINE: Final = "deadline"
"""`Ended.cause`, as the next three."""
MEMORY: Final = "memory"
KILL_REQUESTED: Final = "request"
NOT_FORKED: Final = "not forked"


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
class Job:
    """Fork a child for `work`. The descriptors are the channel, then those of the work.

    The child is killed after `seconds` of wall time, or when it has more than `resident` bytes in memory; `memory`, `cpu` and
    `file` are its rlimits (`isolation.Rlimits`).
    """

    number: int
    work: str
    seconds: float
    resident: int
    memory: int
    cpu: int
    file: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the child of a job. A job that has ended is ignored."""

    number: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The fork server has imported everything."""


@dataclass(frozen=True, slots=True)
class Started:
    """The child of a job was started."""

    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The child of a job was reaped, or could not be forked.

    `status` is the wait status. `cause` is why the fork server killed the child, `NOT_FORKED`, or empty. `stderr` is the start of
    the child's standard error, or the error of the fork. `cpu` is in seconds. `memory` is the largest resident set in bytes.
    """

    number: int
    status: int
    cause: str
    stderr: str
    cpu: float
    memory: int


Message = Job | Kill | Ready | Started | Ended
_KINDS: Final = {kind.__name__: kind for kind in (Job, Kill, Ready, Started, Ended)}


def pack(message: Message) -> bytes:
    """The packet of `message`."""
    return json.dumps([type(message).__name__, asdict(message)]).encode()


def unpack(packet: bytes) -> Message:
    """The message in `packet`. Raises ValueError."""
    try:
        name, values = json.loads(packet)
        kind = _KINDS[name]
        return kind(**{field.name: values[field.name] for field in fields(kind)})
    except (LookupError, TypeError) as error:
        raise ValueError(f"not a message: {error!r}") from error


def frame(content: bytes) -> bytes:
    """`content` with its length."""
    return LENGTH.pack(len(content)) + content


def read_frame(fd: int, *, most: int) -> bytes:
    """The next frame of a blocking descriptor. Raises EOFError, and ValueError for more than `most` bytes."""
    (length,) = LENGTH.unpack(_read(fd, LENGTH.size))
    if length > most:
        raise ValueError(f"a frame of {length} bytes, more than {most}")
    return _read(fd, length)


def write_all(fd: int, content: bytes | bytearray | memoryview) -> None:
    """Write all of `content` to a blocking descriptor. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _read(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, MAX_PACKET))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


_MAX_MESSAGE: Final = 2000
"""Characters of a text in an answer."""
_MAX_LINES: Final = 200


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `sandbox.verdict.judge`, except the code."""

    plugin: Plugin
    limits: SandboxLimits
    envoy: EnvoyVersion
    extra_imports: frozenset[str] = frozenset()

    def to_json(self) -> bytes:
        """JSON; equal requests give equal bytes."""
        plain = replace(self.plugin, environment=dict(self.plugin.environment))
        return msgspec.json.encode(replace(self, plugin=plain), order="deterministic")

    @staticmethod
    def from_json(data: bytes) -> "Request":
        """Reads what `to_json` wrote."""
        return _REQUEST.decode(data)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a child has no result. It is not a verdict on the module."""

    reason: NoVerdictReason
    message: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One of: a verdict, the size in bytes of the compiled module, a problem. `enforced`: None if isolation failed."""

    enforced: Enforced | None
    verdict: Verdict | None = None
    compiled: int | None = None
    problem: Problem | None = None

    def to_json(self) -> bytes:
        """For `from_json`."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(data: bytes) -> "Answer":
        """Raises ValueError for everything but an answer."""
        try:
            answer = _ANSWER.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"not an answer: {shown(str(error))}") from error
        if answer.verdict is not None:
            if not 0 <= answer.verdict.fuel < 2**63:
                raise ValueError("not an answer: fuel")
            answer = replace(answer, verdict=_printable(answer.verdict))
        if answer.problem is not None:
            message = shown(answer.problem.message, most=_MAX_MESSAGE)
            answer = replace(answer, problem=replace(answer.problem, message=message))
        return answer


_REQUEST: Final = msgspec.json.Decoder(Request)
_ANSWER: Final = msgspec.json.Decoder(Answer)


def _printable(verdict: Verdict) -> Verdict:
    """The sandbox also does this, but an answer may come from another program."""
    return replace(
        verdict,
        message=shown(verdict.message, most=_MAX_MESSAGE),
        phase=shown(verdict.phase),
        frames=_lines(verdict.frames),
        log=_lines(verdict.log, most=PreflightLimits().log_line_bytes),
        asked=_lines(verdict.asked),
    )


def _lines(texts: Iterable[str], *, most: int = 500) -> tuple[str, ...]:
    """The last lines."""
    return tuple(shown(text, most=most) for text in tuple(texts)[-_MAX_LINES:])
