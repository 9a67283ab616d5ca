"""The filter, interpreted as the kernel does, for both architectures; the real kernel is in tests/hostile/test_isolation.py."""

import errno
import struct

import pytest

from autowasm.preflight import seccomp
from autowasm.preflight.seccomp import ARCHITECTURES, program

PID = 4711
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
OTHER = 0x40000003  # AUDIT_ARCH_I386
MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE, MAP_ANONYMOUS = 2, 1, 3, 0x20
SOCKETS_AND_PROCESSES = {
    "x86_64": [41, 42, 43, 44, 46, 49, 50, 53, 56, 57, 58, 59, 62, 101, 2, 257, 72, 16, 157, 435],
    "aarch64": [198, 199, 200, 201, 203, 206, 211, 220, 221, 129, 117, 56, 25, 29, 167, 435],
}


def verdict(code: bytes, *, arch: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the filter returns for a call (Linux net/core/filter.c, `___bpf_prog_run` of classic programs)."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, arch, 0, *padded)
    accumulator, place = 0, 0
    while True:
        kind, yes, no, value = struct.unpack_from("=HBBI", code, place * 8)
        place += 1
        match kind:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x15:
                place += yes if accumulator == value else no
            case 0x45:
                place += yes if accumulator & value else no
            case 0x06:
                return value
            case _:
                raise AssertionError(kind)


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_exactly_the_listed_calls_are_allowed(name: str) -> None:
    machine = ARCHITECTURES[name]
    code = program(machine, pid=PID)
    allowed = {
        number
        for number in range(1000)
        if verdict(code, arch=machine.audit, number=number) == ALLOW
    }
    assert allowed == {*machine.allowed, machine.mmap}
    refused = set(range(1000)) - allowed
    assert {verdict(code, arch=machine.audit, number=number) for number in refused} == {REFUSE}


def test_files_sockets_and_processes_are_refused(name: str) -> None:
    machine = ARCHITECTURES[name]
    code = program(machine, pid=PID)
    for number in SOCKETS_AND_PROCESSES[name]:
        assert verdict(code, arch=machine.audit, number=number) == REFUSE, number


def test_a_first_filter_also_lets_files_be_opened_and_a_second_filter_be_installed(
    name: str,
) -> None:
    machine = ARCHITECTURES[name]
    code = program(machine, pid=PID, may_open=True)

    def called(number: int, *arguments: int) -> int:
        return verdict(code, arch=machine.audit, number=number, arguments=arguments)

    allowed = {number for number in range(1000) if called(number) == ALLOW}
    assert allowed == {*machine.allowed, *machine.opening, machine.mmap}
    assert called(machine.prctl, 22) == ALLOW
    assert called(machine.prctl, 1) == REFUSE


def test_a_call_of_another_architecture_kills_the_process(name: str) -> None:
    machine = ARCHITECTURES[name]
    code = program(machine, pid=PID)
    assert verdict(code, arch=OTHER, number=machine.allowed[0]) == KILL


def test_a_call_of_the_x32_abi_is_refused() -> None:
    machine = ARCHITECTURES["x86_64"]
    code = program(machine, pid=PID)
    for number in machine.allowed:
        assert verdict(code, arch=machine.audit, number=number | 1 << 30) == REFUSE


def test_only_private_mappings_are_allowed(name: str) -> None:
    machine = ARCHITECTURES[name]
    code = program(machine, pid=PID)

    def mapped(flags: int) -> int:
        return verdict(code, arch=machine.audit, number=machine.mmap, arguments=(0, 1, 3, flags))

    assert mapped(MAP_PRIVATE | MAP_ANONYMOUS) == ALLOW
    assert mapped(MAP_SHARED | MAP_ANONYMOUS) == REFUSE
    assert mapped(MAP_SHARED_VALIDATE) == REFUSE


def test_a_process_may_signal_itself_only(name: str) -> None:
    machine = ARCHITECTURES[name]
    code = program(machine, pid=PID)

    def signalled(pid: int) -> int:
        return verdict(code, arch=machine.audit, number=machine.tgkill, arguments=(pid, pid, 6))

    assert signalled(PID) == ALLOW
    assert signalled(PID + 1) == REFUSE
    assert signalled(1) == REFUSE


def test_a_machine_without_a_filter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="riscv64") as caught:
        seccomp.restrict()
    assert caught.value.errno == errno.ENOSYS
