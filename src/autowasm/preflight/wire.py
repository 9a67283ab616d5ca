"""Messages between wasmer, the fork server and its children.

The control socket (SOCK_SEQPACKET) has one message in each packet: `Job` with descriptors, and `Kill`, to the fork server;
`Ready`, `Started` and `Ended` from it. A job's channel (SOCK_STREAM) belongs only to its child: one frame with the request, then
one frame with the answer. Invariant: no tenant data is on the control socket, except `Ended.stderr`, which is bounded; a frame
that is longer than its reader allows is refused before it is read. The module imports little, because the fork server loads it.
"""

import json
import os
import struct
from dataclasses import asdict, dataclass, fields
from typing import Final

MAX_PACKET: Final = 64 * 1024
"""Bytes of one packet. The largest is `Ended`, with a few KiB of `stderr`."""
MAX_DESCRIPTORS: Final = 4
LENGTH: Final = struct.Struct("!I")
"""The length in front of a frame."""

DEADLINE: Final = "deadline"
MEMORY: Final = "memory"
REQUEST: Final = "request"
NOT_FORKED: Final = "not forked"


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
