"""Free TCP ports and addresses on loopback.

Not a reservation: between the choice and the bind, a foreign program may take the port. Programs that can choose a port
themselves (port 0) do so. Invariants: no two processes of ours get the same port of 127.0.0.1, as each has a range of its own; a
process reuses a port only after all others of its range; the ranges are below the ports that Linux gives to outgoing
connections, of which a test has thousands.
"""

import atexit
import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

LOOPBACK = "127.0.0.1"

_EPHEMERAL = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
"""The first port that Linux gives to outgoing connections."""
_LOWEST = 10_000
_RANGE = 256
"""Ports in the range of a process. 88 processes get one; further processes use ports of outgoing connections."""
_CLAIM_PORT = 65535
"""The port on the first address of a network of 256 that marks the network, or a range of ports, as used by a process."""


def _claim(address: str) -> bool:
    """Mark the address as used until this process ends. False if another process has it."""
    claim = socket.socket()
    try:
        claim.bind((address, _CLAIM_PORT))
    except OSError:
        claim.close()
        return False
    atexit.register(claim.close)
    return True


class _Ports:
    """The ports of this process's range, in a cycle. A forked process gets a range of its own."""

    def __init__(self) -> None:
        self._process = 0
        self._range: Iterator[int] = iter(())

    def bind(self, listener: socket.socket, address: str) -> None:
        if self._process != os.getpid():
            self._process, self._range = os.getpid(), itertools.cycle(self._claimed())
        for port in itertools.islice(self._range, _RANGE):
            try:
                listener.bind((address, port))
            except OSError:
                continue
            return
        listener.bind((address, 0))

    def _claimed(self) -> range:
        for number in range((_EPHEMERAL - _LOWEST) // _RANGE):
            if _claim(f"127.63.{number}.1"):
                first = _LOWEST + number * _RANGE
                return range(first, first + _RANGE)
        return range(0)


_ports = _Ports()


def free_ports(count: int, *, address: str = LOOPBACK) -> list[int]:
    """Distinct ports that are free at this moment."""
    with ExitStack() as held:
        ports = []
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            _ports.bind(listener, address)
            ports.append(int(listener.getsockname()[1]))
    return ports


def free_port(*, address: str = LOOPBACK) -> int:
    """A port that is free at this moment."""
    return free_ports(1, address=address)[0]


class _Addresses:
    """Addresses in networks of 256; each network is claimed until the process ends."""

    def __init__(self) -> None:
        self._free: Iterator[str] = iter(())

    def next(self) -> str:
        """An address that no other process of ours uses."""
        if address := next(self._free, ""):
            return address
        network = self._claimed()
        self._free = (f"{network}.{last}" for last in range(2, 255))
        return next(self._free)

    def _claimed(self) -> str:
        for number in range(1, 64 * 256):
            network = f"127.{64 + number // 256}.{number % 256}"
            if _claim(f"{network}.1"):
                return network
        raise OSError("no network of loopback addresses is free")


_addresses = _Addresses()


def free_address() -> str:
    """A loopback address that no other caller gets, in this process or another."""
    return _addresses.next()
