"""A seccomp filter that leaves a process only the system calls for pure computation.

Allowed: memory, clocks, signals to itself, and reads and writes of descriptors that are open already. All other calls fail with
EPERM: files, sockets, processes, threads, tracing. A first filter also allows it to open files, until a second one forbids that,
too. Invariant: the filter is an allowlist, so a system call that a later kernel adds is refused.

Sources: Linux `Documentation/userspace-api/seccomp_filter.rst`, `include/uapi/linux/{seccomp,filter,audit}.h`; numbers of
system calls from `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` (aarch64). No library: the
bindings of libseccomp on PyPI need its shared library, which images of Python lack.
"""

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2

# include/uapi/linux/seccomp.h
_KILL_PROCESS: Final = 0x8000_0000
_ALLOW: Final = 0x7FFF_0000
_ERRNO: Final = 0x0005_0000

# include/uapi/linux/filter.h and bpf_common.h: load a word; compare it with a constant; return
_LOAD: Final = 0x20
_IF_EQUAL: Final = 0x15
_IF_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06

# struct seccomp_data; both architectures are little-endian, so the low half of an argument is first.
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16

_NO_CALL: Final = 0xFFFF_FFFF
_MAP_SHARED: Final = 1  # include/uapi/linux/mman.h; a bit of MAP_SHARED_VALIDATE, too


@dataclass(frozen=True, slots=True)
class Architecture:
    """One kind of machine: its name in audit.h, and numbers of system calls."""

    audit: int
    allowed: tuple[int, ...]
    mmap: int
    """Allowed for private mappings: RLIMIT_DATA does not count shared ones."""
    tgkill: int
    """Allowed for the process itself: `abort` needs it."""
    prctl: int
    """Allowed for a further filter while files may be opened."""
    opening: tuple[int, ...]


def _calls(**numbers: int) -> tuple[int, ...]:
    """The numbers; the names are only for the reader."""
    return tuple(numbers.values())


ARCHITECTURES: Final = {
    "x86_64": Architecture(
        audit=0xC000_003E,
        # x32 ABI numbers have bit 30 set, so they equal none of these.
        allowed=_calls(
            read=0,
            write=1,
            close=3,
            fstat=5,
            lseek=8,
            mprotect=10,
            munmap=11,
            brk=12,
            rt_sigaction=13,
            rt_sigprocmask=14,
            rt_sigreturn=15,
            pread64=17,
            readv=19,
            writev=20,
            sched_yield=24,
            mremap=25,
            mincore=27,
            madvise=28,
            nanosleep=35,
            getpid=39,
            exit=60,
            gettimeofday=96,
            getrusage=98,
            getppid=110,
            sigaltstack=131,
            gettid=186,
            time=201,
            futex=202,
            restart_syscall=219,
            clock_gettime=228,
            clock_getres=229,
            clock_nanosleep=230,
            exit_group=231,
            getcpu=309,
            getrandom=318,
            membarrier=324,
        ),
        mmap=9,
        tgkill=234,
        prctl=157,
        opening=_calls(openat=257, newfstatat=262, statx=332),
    ),
    "aarch64": Architecture(
        audit=0xC000_00B7,
        allowed=_calls(
            close=57,
            lseek=62,
            read=63,
            write=64,
            readv=65,
            writev=66,
            pread64=67,
            fstat=80,
            exit=93,
            exit_group=94,
            futex=98,
            nanosleep=101,
            clock_gettime=113,
            clock_getres=114,
            clock_nanosleep=115,
            sched_yield=124,
            restart_syscall=128,
            sigaltstack=132,
            rt_sigaction=134,
            rt_sigprocmask=135,
            rt_sigreturn=139,
            getrusage=165,
            getcpu=168,
            gettimeofday=169,
            getpid=172,
            getppid=173,
            gettid=178,
            brk=214,
            munmap=215,
            mremap=216,
            mprotect=226,
            mincore=232,
            madvise=233,
            getrandom=278,
            membarrier=283,  # wasmtime makes new code visible to the processor with it
        ),
        mmap=222,
        tgkill=131,
        prctl=167,
        opening=_calls(openat=56, newfstatat=79, statx=291),
    ),
}
"""By `platform.machine()`: the Linux machines for which there are wheels of wasmtime that run in 64 bits."""


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def program(architecture: Architecture, *, pid: int, may_open: bool = False) -> bytes:
    """The filter for the process `pid` as BPF instructions (`struct sock_filter`, 8 bytes each)."""
    allowed = architecture.allowed + (architecture.opening if may_open else ())
    # None has the number -1; the kernel returns ENOSYS for it in any case.
    prctl = architecture.prctl if may_open else _NO_CALL
    lines: list[_Line] = [
        _Line(_LOAD, _ARCHITECTURE),
        _Line(_IF_EQUAL, architecture.audit, no="kill"),
        _Line(_LOAD, _NUMBER),
        *(_Line(_IF_EQUAL, call, yes="allow") for call in allowed),
        _Line(_IF_EQUAL, architecture.mmap, no="not mmap"),
        _Line(_LOAD, _ARGUMENTS + 3 * 8),
        _Line(_IF_ANY_BIT, _MAP_SHARED, yes="refuse", no="allow"),
        _Line(_IF_EQUAL, architecture.tgkill, no="not tgkill", label="not mmap"),
        _Line(_LOAD, _ARGUMENTS),
        _Line(_IF_EQUAL, pid, yes="allow", no="refuse"),
        _Line(_IF_EQUAL, prctl, no="refuse", label="not tgkill"),
        _Line(_LOAD, _ARGUMENTS),
        _Line(_IF_EQUAL, _PR_SET_SECCOMP, yes="allow", no="refuse"),
        _Line(_RETURN, _KILL_PROCESS, label="kill"),
        _Line(_RETURN, _ERRNO | errno.EPERM, label="refuse"),
        _Line(_RETURN, _ALLOW, label="allow"),
    ]
    places = {line.label: place for place, line in enumerate(lines) if line.label}

    def skipped(place: int, label: str) -> int:
        return places[label] - place - 1 if label else 0

    return b"".join(
        struct.pack(
            "=HBBI", line.code, skipped(place, line.yes), skipped(place, line.no), line.value
        )
        for place, line in enumerate(lines)
    )


class _Line(NamedTuple):
    """One instruction. `yes` and `no` are labels; empty: the next line."""

    code: int
    value: int
    yes: str = ""
    no: str = ""
    label: str = ""


def restrict(*, may_open: bool = False) -> None:
    """Install the filter in this process permanently. The process has one thread, and `no_new_privs` is set.

    After a call with `may_open`, call it again without: of several filters, the strictest counts. Raises OSError: ENOSYS on a
    machine that is not in `ARCHITECTURES`, or the kernel's error.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {platform.machine()}")
    code = program(architecture, pid=os.getpid(), may_open=may_open)
    described = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
