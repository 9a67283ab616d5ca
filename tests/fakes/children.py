"""A fork server whose children misbehave like a module that took over its child, or report what they are still able to do.

`python -m tests.fakes.children`. The request of a job names a function of this file.
"""

import _thread
import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import signal
import socket
import time
from collections.abc import Callable, Sequence

from autowasm.preflight import forkserver, isolation, messages

MISBEHAVE = "misbehave"
"""Isolated."""
OPEN = "open"
"""Isolated, but may open its first descriptor again."""
SEAL = "seal"
"""Like `OPEN`, and sealed afterwards."""
_REQUEST = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)
_UNLIMITED = (ctypes.c_ulong * 2)(2**64 - 1, 2**64 - 1)
_NUMBERS = {
    "x86_64": {"clone": 56, "fork": 57, "clone3": 435, "io_uring_setup": 425, "ptrace": 101},
    "aarch64": {"clone": 220, "fork": -1, "clone3": 435, "io_uring_setup": 425, "ptrace": 117},
}
_MORE = {
    "x86_64": {"bpf": 321, "userfaultfd": 323, "keyctl": 250, "process_vm_readv": 310},
    "aarch64": {"bpf": 280, "userfaultfd": 282, "keyctl": 219, "process_vm_readv": 270},
}
UNREAD = "unread"
"""Answer without reading the request."""


def answer(channel: int, values: object) -> None:
    """Answer in order."""
    messages.write_all(channel, messages.frame(json.dumps(values).encode()))


def report(channel: int, descriptors: Sequence[int]) -> None:
    """The result of each attempt: an error's name, or `allowed`."""
    answer(channel, {name: _outcome(attempt) for name, attempt in _attempts(descriptors).items()})


def _attempts(descriptors: Sequence[int]) -> dict[str, Callable[[], object]]:
    numbers = _NUMBERS[platform.machine()] | _MORE[platform.machine()]
    return {
        "next descriptor": lambda: os.read(4 + len(descriptors), 1),
        "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "read its environment": lambda: os.open("/proc/self/environ", os.O_RDONLY),
        "list a directory": lambda: os.listdir("/"),  # noqa: PTH208
        "look at a file": lambda: os.stat("/etc/passwd"),  # noqa: PTH116
        "reopen its input": lambda: os.open(f"/proc/self/fd/{descriptors[0]}", os.O_RDONLY),
        "reopen its input for writing": lambda: os.open(
            f"/proc/self/fd/{descriptors[0]}", os.O_RDWR
        ),
        "write to its input": lambda: os.write(descriptors[0], b"x"),
        "make a file": lambda: os.open("/tmp/preflight", os.O_WRONLY | os.O_CREAT),
        "make a memory file": lambda: os.memfd_create("x"),
        "remove a file": lambda: os.unlink("/tmp/preflight"),  # noqa: PTH108
        "change the owner": lambda: os.chown("/tmp", 0, 0),
        "internet socket": lambda: socket.socket(socket.AF_INET),
        "internet 6 socket": lambda: socket.socket(socket.AF_INET6),
        "local socket": lambda: socket.socket(socket.AF_UNIX),
        "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "pair of sockets": socket.socketpair,
        "pass a descriptor": lambda: _call_libc("sendmsg", 3, None, 0),
        "fork": os.fork,
        "system call fork": lambda: _call(numbers["fork"]),
        "system call clone": lambda: _call(numbers["clone"], signal.SIGCHLD, 0, 0, 0, 0),
        "system call clone3": lambda: _call(numbers["clone3"], 0, 0),
        "thread": lambda: _thread.start_new_thread(time.sleep, (0,)),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "signal its parent": lambda: os.kill(os.getppid(), 0),
        "signal all": lambda: os.kill(-1, 0),
        "trace its parent": lambda: _call(numbers["ptrace"], 16, os.getppid(), 0, 0),
        "read its parent's memory": lambda: _call(numbers["process_vm_readv"], os.getppid()),
        "open its parent": lambda: os.pidfd_open(os.getppid()),
        "live on without parent": lambda: _call_libc("prctl", 1, 0, 0, 0, 0),
        "raise a limit": lambda: _call_libc("setrlimit", resource.RLIMIT_DATA, _UNLIMITED),
        "raise its priority": lambda: os.nice(-1),
        "leave its namespaces": lambda: _call_libc("unshare", 0x10000000),
        "mount": lambda: _call_libc("mount", None, b"/mnt", b"tmpfs", 0, None),
        "io_uring": lambda: _call(numbers["io_uring_setup"], 1, 0),
        "bpf": lambda: _call(numbers["bpf"], 0, 0, 0),
        "userfaultfd": lambda: _call(numbers["userfaultfd"], 1),
        "keys": lambda: _call(numbers["keyctl"], 0, 0, 0),
        "shared memory": lambda: _map(1, 4096),
        "private memory": lambda: _map(2, 4096),
        "memory beyond the limit": lambda: _map(2, 1 << 33),
    }


def _call(number: int, *arguments: object) -> object:
    return _checked(_libc.syscall(number, *arguments))


def _call_libc(name: str, *arguments: object) -> object:
    return _checked(getattr(_libc, name)(*arguments))


def _map(flags: int, size: int) -> object:
    function = _libc.mmap
    function.restype = ctypes.c_ssize_t
    anonymous, writable = 0x20, 3
    return _checked(function(None, ctypes.c_size_t(size), writable, flags | anonymous, -1, 0))


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except RuntimeError as error:  # _thread's
        return str(error)
    return "allowed"


def variables(channel: int, _descriptors: Sequence[int]) -> None:
    """The names of the environment variables."""
    answer(channel, sorted(os.environ))


def wait_forever(_channel: int, _descriptors: Sequence[int]) -> None:
    """Hang without using the processor."""
    while True:
        time.sleep(60)


def say_and_wait(channel: int, _descriptors: Sequence[int]) -> None:
    """Answer, then hang."""
    answer(channel, "still here")
    wait_forever(channel, ())


def hang_up_and_wait(channel: int, _descriptors: Sequence[int]) -> None:
    """Close the channel, then hang."""
    os.close(channel)
    wait_forever(channel, ())


def burn(_channel: int, _descriptors: Sequence[int]) -> None:
    """Use the processor endlessly."""
    while True:
        pass


def fill_memory(_channel: int, _descriptors: Sequence[int]) -> None:
    """Allocate and use all memory."""
    kept = []
    while True:
        kept.append(bytearray(b"x") * (1 << 20))


def garbage(channel: int, _descriptors: Sequence[int]) -> None:
    """A frame that is not JSON."""
    messages.write_all(channel, messages.frame(b"\xff\0garbage"))


def nested(channel: int, _descriptors: Sequence[int]) -> None:
    """A frame of very deeply nested JSON."""
    messages.write_all(channel, messages.frame(b"[" * 200_000))


def half(channel: int, _descriptors: Sequence[int]) -> None:
    """Half a frame."""
    messages.write_all(channel, messages.frame(b"x" * 100)[:50])


def endless(channel: int, _descriptors: Sequence[int]) -> None:
    """A frame of 4 GiB, until the reader closes."""
    messages.write_all(channel, b"\xff\xff\xff\xff")
    while True:
        os.write(channel, bytes(1 << 16))


def forged(channel: int, _descriptors: Sequence[int]) -> None:
    """A problem that does not exist."""
    values = {"enforced": None, "verdict": None, "compiled": None}
    answer(channel, {**values, "problem": {"reason": "x" * 100, "message": "m"}})


def silent(_channel: int, _descriptors: Sequence[int]) -> None:
    """Exit without an answer."""


def abort(_channel: int, _descriptors: Sequence[int]) -> None:
    """Abort as Rust does."""
    os.write(2, b"thread '<unnamed>' panicked at \x1b[31m\nsomewhere")
    os.abort()


def chatter(channel: int, _descriptors: Sequence[int]) -> None:
    """Write 16 MiB to the standard error, then answer."""
    for _ in range(256):
        for fd in (1, 2):
            with contextlib.suppress(BlockingIOError):
                os.write(fd, b"x" * (1 << 16))
    answer(channel, "done")


def fail(_channel: int, _descriptors: Sequence[int]) -> None:
    """A bug of ours."""
    raise ValueError("a bug")


def echo(channel: int, _descriptors: Sequence[int]) -> None:
    """Answer with its own pid."""
    answer(channel, os.getpid())


def _misbehave(channel: int, descriptors: Sequence[int], limits: isolation.Rlimits) -> None:
    isolation.isolate(limits)
    _run_named(channel, descriptors)


def _open(channel: int, descriptors: Sequence[int], limits: isolation.Rlimits) -> None:
    isolation.isolate(limits, readable=descriptors[0])
    _run_named(channel, descriptors)


def _seal(channel: int, descriptors: Sequence[int], limits: isolation.Rlimits) -> None:
    isolation.isolate(limits, readable=descriptors[0])
    isolation.seal()
    _run_named(channel, descriptors)


def _leave_unread(channel: int, descriptors: Sequence[int], _limits: isolation.Rlimits) -> None:
    echo(channel, descriptors)


def _run_named(channel: int, descriptors: Sequence[int]) -> None:
    name = messages.read_frame(channel, most=_REQUEST).decode()
    globals()[name](channel, descriptors)


def main() -> None:
    """The entry."""
    works = dict.fromkeys((MISBEHAVE, "compile", "run"), _misbehave)
    forkserver.run(works | {OPEN: _open, SEAL: _seal, UNREAD: _leave_unread})


if __name__ == "__main__":
    main()
