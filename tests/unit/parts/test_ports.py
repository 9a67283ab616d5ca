"""Ports and addresses that tests choose for programs: two processes never get the same one."""

import socket
import subprocess
import sys
from itertools import chain

from tests.parts import ports


def drawn_by_processes(code: str) -> list[list[str]]:
    """What six processes print that run at the same time."""
    command = [sys.executable, "-c", f"from tests.parts import ports; {code}; input()"]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    try:
        return [
            (process.stdout.readline() if process.stdout else "").split() for process in started
        ]
    finally:
        for process in started:
            process.communicate("\n", timeout=60)


def test_no_two_processes_get_the_same_port() -> None:
    mine = [str(port) for port in ports.free_ports(50)]
    drawn = drawn_by_processes("print(*[ports.free_port() for _ in range(50)])")
    found = [*mine, *chain.from_iterable(drawn)]
    assert len(found) == len(set(found)) == 350


def test_no_two_processes_get_the_same_address() -> None:
    mine = ports.free_address()
    drawn = drawn_by_processes("print(*[ports.free_address() for _ in range(300)])")
    found = [mine, *chain.from_iterable(drawn)]
    assert len(found) == len(set(found)) == 1801


def test_port_in_use_is_not_chosen_and_one_chosen_before_only_after_all_others() -> None:
    seen = set[int]()
    with socket.socket() as used:
        used.bind((ports.LOOPBACK, ports.free_port()))
        for _ in range(100):
            port = ports.free_port()
            assert port != used.getsockname()[1]
            assert port not in seen
            seen.add(port)
