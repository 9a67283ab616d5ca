"""The resources that a module could reach after it took over its child process: tried from inside, on the running kernel."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autowasm.limits import PreflightLimits
from autowasm.preflight.processes import ForkServer
from autowasm.telemetry.metrics import Metrics
from tests.fakes import forkserver
from tests.fakes.children import MISBEHAVE, OPEN, SEAL
from tests.fakes.forkserver import children_of, until

LIMITS = PreflightLimits()
REFUSED = "EPERM"
OTHERWISE = {
    "private memory": "allowed",
    "write to its input": "EBADF",  # open for reading only
    "next descriptor": "EBADF",  # nothing else is open
    "memory beyond the limit": "ENOMEM",
    "system call fork": "EPERM",
    "thread": "can't start new thread",
}


@pytest.fixture
async def server(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ForkServer]:
    monkeypatch.setenv("REGISTRY_PASSWORD", "hunter2")
    async with forkserver.running(LIMITS, metrics) as server:
        yield server


async def ask(server: ForkServer, what: str, *descriptors: int, work: str = MISBEHAVE) -> object:
    result = await server.execute(
        work, descriptors, request=what.encode(), seconds=20, resident=LIMITS.run_memory
    )
    assert result.ended.status == 0, result
    assert result.answer is not None
    return json.loads(result.answer)


async def outcomes(server: ForkServer, directory: Path, *, work: str) -> dict[str, str]:
    (directory / "module").write_bytes(b"module")
    with (directory / "module").open("rb") as module:
        found = await ask(server, "report", module.fileno(), work=work)
    assert (directory / "module").read_bytes() == b"module"
    assert isinstance(found, dict)
    assert len(found) == 41
    return found


@pytest.mark.parametrize("work", [MISBEHAVE, SEAL])
async def test_a_child_reaches_nothing_but_its_memory(
    server: ForkServer, tmp_path: Path, work: str
) -> None:
    found = await outcomes(server, tmp_path, work=work)
    assert found == dict.fromkeys(found, REFUSED) | OTHERWISE


async def test_before_it_is_sealed_a_child_reaches_its_code_and_no_other_file(
    server: ForkServer, tmp_path: Path
) -> None:
    found = await outcomes(server, tmp_path, work=OPEN)
    by_landlock = "EACCES" if (_landlock_version() >= 1) else "allowed"
    assert found == dict.fromkeys(found, REFUSED) | OTHERWISE | {
        "reopen its input": "allowed",
        "reopen its input for writing": by_landlock,
        "read a file": by_landlock,
        "read its environment": by_landlock,
        "list a directory": by_landlock,
        "make a file": by_landlock,
        "look at a file": "allowed",  # Landlock does not restrict stat
    }


async def test_a_child_has_no_variable_of_wasmer(server: ForkServer) -> None:
    # The variables that the interpreter needs, and LC_CTYPE, which it sets itself (PEP 538).
    names = await ask(server, "variables")
    assert isinstance(names, list)
    assert set(names) <= {"PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LC_CTYPE"}


async def test_the_kernel_shows_the_limits_of_a_child(server: ForkServer) -> None:
    waiting = asyncio.create_task(ask(server, "wait_forever"))
    try:
        await until(lambda: server.pid and children_of(server.pid))
        (pid,) = children_of(server.pid)
        await until(lambda: _field(pid, "Seccomp:") == "2")
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert _field(pid, "NoNewPrivs:") == "1"
        assert _field(pid, "Threads:") == "1"
        assert _limit(limits, "Max data size") == str(LIMITS.address_memory)
        assert _limit(limits, "Max file size") == "0"
        assert _limit(limits, "Max processes") == "0"
        assert _limit(limits, "Max open files") == "0"
        assert _limit(limits, "Max core file size") == "0"
        assert _limit(limits, "Max cpu time") == "22"
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH
        assert os.getsid(pid) != os.getsid(0)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def _field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name))


def _limit(limits: str, name: str) -> str:
    line = next(line for line in limits.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()[1]  # the hard one


_LANDLOCK_ALONE = """
import ctypes, errno, os, socket, threading
from autowasm.preflight import landlock
server = socket.create_server(("127.0.0.1", 0))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0preflight-%d" % os.getpid())
abstract.listen()
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
print(landlock.restrict())
def attempt(function):
    try:
        function()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
def own_socket():
    socket.socket(socket.AF_UNIX).connect(abstract.getsockname())
print(attempt(lambda: open("/etc/passwd")))
print(attempt(lambda: open("/tmp/preflight", "w")))
print(attempt(lambda: os.listdir("/")))
print(attempt(lambda: socket.create_connection(server.getsockname(), 5)))
print(attempt(lambda: socket.create_server(("127.0.0.1", 0))))
print(attempt(own_socket))
print(attempt(lambda: os.kill(os.getppid(), 0)))
"""


def _run(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _landlock_version() -> int:
    return int(_run(_LANDLOCK_ALONE)[0])


def test_landlock_alone_refuses_files_and_what_else_its_version_supports() -> None:
    version, *outcomes = _run(_LANDLOCK_ALONE)
    files, network, foreign = outcomes[:3], outcomes[3:5], outcomes[5:]
    assert files == (["EACCES"] * 3 if int(version) >= 1 else ["allowed"] * 3)
    assert network == (["EACCES"] * 2 if int(version) >= 4 else ["allowed"] * 2)
    assert foreign == (["EPERM"] * 2 if int(version) >= 6 else ["allowed"] * 2)


_WITHOUT = """
import ctypes, errno, struct, sys
from autowasm.preflight import isolation, seccomp
from autowasm.preflight.isolation import Rlimits
number, code = int(sys.argv[1]), getattr(errno, sys.argv[2])
argument = int(sys.argv[3]) if len(sys.argv) > 3 else None
lines = [(0x20, 0, 0, 0), (0x15, 0, 3 if argument is not None else 1, number)]
if argument is not None:
    lines += [(0x20, 0, 0, 16), (0x15, 0, 1, argument)]
lines += [(6, 0, 0, 0x50000 | code), (6, 0, 0, 0x7fff0000)]
data = b"".join(struct.pack("=HBBI", *line) for line in lines)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
described = seccomp._Program(len(lines), data)
assert libc.prctl(22, 2, ctypes.byref(described), 0, 0) == 0
try:
    print(isolation.isolate(Rlimits(memory=1 << 30, cpu=10)).landlock)
except isolation.NotIsolated as error:
    print(error.__cause__.errno == code)
"""
_LANDLOCK_CREATE_RULESET = 444
_PRCTL = {"x86_64": 157, "aarch64": 167}[os.uname().machine]
_SET_SECCOMP = 22


def _without(number: int, code: str, *argument: int) -> str:
    """The result of the isolation on a kernel (or in a container) where a system call fails."""
    command = [sys.executable, "-c", _WITHOUT, str(number), code, *map(str, argument)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("code", ["ENOSYS", "EOPNOTSUPP", "EPERM"])
def test_a_kernel_without_landlock_is_reported_and_no_error(code: str) -> None:
    assert _without(_LANDLOCK_CREATE_RULESET, code) == "0"


@pytest.mark.parametrize("code", ["EINVAL", "EPERM"])
def test_without_seccomp_nothing_runs(code: str) -> None:
    assert _without(_PRCTL, code, _SET_SECCOMP) == "True"
