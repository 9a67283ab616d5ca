"""The rights that a child gives up before it reads a byte of a tenant.

Invariants: after `isolate`, the process can only compute, read and write the descriptors that it kept, and until `seal` reopen
one file for reading; if seccomp cannot enforce that on this kernel, there is an error and the module does not run; the result
lists the other restrictions in force.
"""

import ctypes
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from autowasm.preflight import landlock, seccomp

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38

_LOWEST_PRIORITY: Final = 19
_FILES: Final = 16
"""Descriptors, if a file will be opened."""
_STACK: Final = 8 * 1024 * 1024
"""Bytes. RLIMIT_DATA does not count the stack. The usual default, which may be unlimited in a container."""


@dataclass(frozen=True, slots=True)
class Rlimits:
    """Limits of one child. `memory` in bytes of writable memory, `cpu` in seconds, `file` in bytes of the largest file.

    `memory` counts allocated memory, used or not (`PreflightLimits.address_memory`). Resident memory has no rlimit: `forkserver.py`
    measures it, and kills a child that exceeds its bound.
    """

    memory: int
    cpu: int
    file: int = 0


@dataclass(frozen=True, slots=True)
class Enforced:
    """The restrictions in force besides rlimits and `no_new_privs`. `landlock` is the version, 0 for none."""

    seccomp: bool
    landlock: int


def die_with(parent: int) -> None:
    """Let the kernel kill this process when the process `parent`, which forked it, ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


def keep_only(descriptors: Sequence[int]) -> None:
    """Renumber `descriptors` to 0, 1, … and close all others. Each descriptor is given once."""
    high = max(descriptors) + len(descriptors) + 1
    for position, fd in enumerate(descriptors):
        os.dup2(fd, high + position, inheritable=False)  # so that no descriptor overwrites another
    for position in range(len(descriptors)):
        os.dup2(high + position, position, inheritable=False)
    os.closerange(len(descriptors), resource.getrlimit(resource.RLIMIT_NOFILE)[0])


class NotIsolated(Exception):
    """The kernel or the container's profile does not allow the calls that isolation needs."""


def isolate(limits: Rlimits, *, readable: int | None = None) -> Enforced:
    """Give up everything that a computation does not need. The process has one thread. Raises NotIsolated.

    The caller has closed descriptors that must not be inherited. Nothing can be imported afterwards. With `readable`, the file of
    that descriptor can be opened (without Landlock: any file) until `seal` is called.
    """
    try:
        os.nice(_LOWEST_PRIORITY)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        _prctl(_PR_SET_DUMPABLE, 0)  # no core dump, and no ptrace by other processes of this user
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        version = landlock.restrict(readable=readable)
        for kind, most in _table(limits, files=0 if readable is None else _FILES):
            resource.setrlimit(kind, (most, most))
        seccomp.restrict(may_open=readable is not None)
    except (OSError, ValueError) as error:  # ValueError: setrlimit
        raise NotIsolated(str(error)) from error
    return Enforced(seccomp=True, landlock=version)


def seal() -> None:
    """Deny opening any further file. Raises NotIsolated."""
    try:
        seccomp.restrict()
    except OSError as error:
        raise NotIsolated(str(error)) from error


def _table(limits: Rlimits, *, files: int) -> tuple[tuple[int, int], ...]:
    return (
        # Of writable memory, not of addresses: wasmtime reserves 4 GiB of addresses for a memory, most of it never used
        # (mm/mmap.c, may_expand_vm).
        (resource.RLIMIT_DATA, limits.memory),
        (resource.RLIMIT_STACK, _STACK),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_CPU, limits.cpu),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    )


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
