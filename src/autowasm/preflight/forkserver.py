"""The fork server: a process that has imported wasmtime and the sandbox, and forks a child for each job.

Its standard input is the control socket; `processes.py` starts it. A fork takes milliseconds; starting the interpreter with its
imports takes a quarter of a second. Invariants: it has one thread; it never reads a tenant's data, and runs no code of a module;
a child that exceeds its time or its resident memory is killed; every child is reaped; no child outlives the fork server, and the
fork server exits when the control socket is closed.
"""

import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autowasm.preflight import isolation, messages
from autowasm.preflight.messages import (
    DEADLINE,
    KILL_REQUESTED,
    MEMORY,
    NOT_FORKED,
    Ended,
    Job,
    Kill,
    Ready,
    Started,
)

_STDERR_BYTES: Final = 4096
"""Bytes of one child. The pipe holds no more, and a write to a full pipe fails instead of waiting."""
_LOOK_SECONDS: Final = 0.01
"""Between two checks of the memory of running children. A process fills about 20 MiB meanwhile."""
_TASKS: Final = Path("/proc/self/task")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_F_SETPIPE_SZ: Final = 1031  # include/uapi/linux/fcntl.h

Work = Callable[[int, Sequence[int], isolation.Rlimits], None]
"""Runs in the child, which ends with it: the channel, the work's descriptors, and the limits to put in force."""


@dataclass(slots=True, eq=False)
class _Child:
    number: int
    pid: int
    stderr: int
    deadline: float
    resident: int
    cause: str = ""


class Server:
    """The fork server on a connected SOCK_SEQPACKET socket. `works` maps each kind of job to its function."""

    def __init__(self, control: socket.socket, works: Mapping[str, Work]) -> None:
        self._control = control
        self._works = works
        self._children: dict[int, _Child] = {}
        self._pid = os.getpid()

    def serve(self) -> None:
        """Serve until the control socket is closed, then kill all children."""
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # a collection in a child would copy every page
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(woken, select.POLLIN)
        self._send(Ready())
        try:
            while True:
                ready = {fd for fd, _ in poll.poll(self._patience())}
                if woken in ready:
                    os.read(woken, messages.MAX_PACKET)
                self._enforce()
                self._reap()
                if self._control.fileno() in ready and not self._receive():
                    return
        finally:
            for child in self._children.values():
                os.kill(child.pid, signal.SIGKILL)
            for child in self._children.values():
                os.waitpid(child.pid, 0)

    def _patience(self) -> float | None:
        """Milliseconds until a child may have to be killed."""
        if not self._children:
            return None
        first = min(child.deadline for child in self._children.values())
        return min(max(0.0, first - time.monotonic()), _LOOK_SECONDS) * 1000 + 1

    def _receive(self) -> bool:
        """Whether the other end is still there."""
        packet, descriptors, _flags, _address = socket.recv_fds(
            self._control, messages.MAX_PACKET, messages.MAX_DESCRIPTORS
        )
        if not packet:
            return False
        try:
            match messages.unpack(packet):
                case Job() as job:
                    self._start(job, descriptors)
                case Kill(number):
                    if number in self._children:
                        self._kill(self._children[number], KILL_REQUESTED)
                case other:
                    raise ValueError(f"not a message for the fork server: {other!r}")
        finally:
            for fd in descriptors:
                os.close(fd)
        return True

    def _start(self, job: Job, descriptors: Sequence[int]) -> None:
        reading, writing = os.pipe()
        fcntl.fcntl(writing, _F_SETPIPE_SZ, _STDERR_BYTES)
        os.set_blocking(writing, False)
        try:
            pid = os.fork()
        except OSError as error:
            os.close(reading)
            os.close(writing)
            problem = str(error)
            self._send(
                Ended(job.number, status=0, cause=NOT_FORKED, stderr=problem, cpu=0.0, memory=0)
            )
            return
        if not pid:
            self._run_child(job, descriptors, writing)
        os.close(writing)
        deadline = time.monotonic() + job.seconds
        self._children[job.number] = _Child(job.number, pid, reading, deadline, job.resident)
        self._send(Started(job.number, pid))

    def _run_child(self, job: Job, descriptors: Sequence[int], stderr: int) -> None:
        """Does not return."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            isolation.die_with(self._pid)
            stdin = os.open(os.devnull, os.O_RDONLY)
            isolation.keep_only([stdin, stderr, stderr, *descriptors])
            channel, *rest = range(3, 3 + len(descriptors))
            limits = isolation.Rlimits(memory=job.memory, cpu=job.cpu, file=job.file)
            self._works[job.work](channel, rest, limits)
        except BaseException as error:
            os.write(2, repr(error).encode()[: _STDERR_BYTES // 2])
            os._exit(1)
        os._exit(0)

    def _enforce(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.cause:
                continue
            if child.deadline <= now:
                self._kill(child, DEADLINE)
            elif _resident(child.pid) > child.resident:
                self._kill(child, MEMORY)

    def _kill(self, child: _Child, cause: str) -> None:
        child.cause = child.cause or cause
        os.kill(
            child.pid, signal.SIGKILL
        )  # the child is not reaped yet, so the pid is still its own

    def _reap(self) -> None:
        for child in list(self._children.values()):
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if not pid:
                continue
            del self._children[child.number]
            stderr = os.read(child.stderr, _STDERR_BYTES) if _has_data(child.stderr) else b""
            os.close(child.stderr)
            self._send(
                Ended(
                    child.number,
                    status=status,
                    cause=child.cause,
                    stderr=stderr.decode(errors="replace"),
                    cpu=usage.ru_utime + usage.ru_stime,
                    memory=usage.ru_maxrss * 1024,
                )
            )

    def _send(self, message: Ready | Started | Ended) -> None:
        self._control.send(messages.pack(message))


def _resident(pid: int) -> int:
    """Bytes. 0 for a process that has ended and is not reaped yet, and where /proc hides it; its rlimits still apply."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - every 10 ms
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0


def _has_data(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def run(works: Mapping[str, Work]) -> None:
    """Serve on the standard input. Raises RuntimeError if an import started a thread, whose locks would be lost in a fork."""
    if len(list(_TASKS.iterdir())) != 1:
        raise RuntimeError("the fork server has more than one thread")
    control = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    Server(control, works).serve()
