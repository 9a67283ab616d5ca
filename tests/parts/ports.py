"""Free TCP ports and addresses on loopback.

Not a reservation: between the choice and the bind, another process may take the port. Programs
that can choose for themselves (port 0) do; those that cannot are started again with another number. Ports are
drawn from below those that Linux gives to outgoing connections, of which a test has thousands.
"""

import atexit
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

LOOPBACK = "127.0.0.1"

_EPHEMERAL = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
"""The first port that Linux gives to outgoing connections."""
_LOWEST = 10_000
_CLAIM_PORT = 65535
"""The port on the first address of a network of 256 that marks the network as used by a process."""


def free_ports(count: int, *, address: str = LOOPBACK) -> list[int]:
    """Different ports, all free at this moment."""
    with ExitStack() as held:
        ports = []
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            _bind(listener, address)
            ports.append(int(listener.getsockname()[1]))
    return ports


def _bind(listener: socket.socket, address: str) -> None:
    """To a free port outside the range of outgoing connections, where there are enough."""
    for _ in range(100 if _EPHEMERAL >= 2 * _LOWEST else 0):
        try:
            listener.bind((address, _LOWEST + secrets.randbelow(_EPHEMERAL - _LOWEST)))
        except OSError:
            continue
        return
    listener.bind((address, 0))


def free_port(*, address: str = LOOPBACK) -> int:
    """A port that is free at this moment."""
    return free_ports(1, address=address)[0]


class _Addresses:
    """Addresses in networks of 256, each of which is claimed for as long as the process lives."""

    def __init__(self) -> None:
        self._free: Iterator[str] = iter(())

    def next(self) -> str:
        """One that no other process of ours uses."""
        if address := next(self._free, ""):
            return address
        network = self._claim()
        self._free = (f"{network}.{last}" for last in range(2, 255))
        return next(self._free)

    def _claim(self) -> str:
        for number in range(1, 64 * 256):
            network = f"127.{64 + number // 256}.{number % 256}"
            claim = socket.socket()
            try:
                claim.bind((f"{network}.1", _CLAIM_PORT))
            except OSError:
                claim.close()
            else:
                atexit.register(claim.close)
                return network
        raise OSError("no network of loopback addresses is free")


_addresses = _Addresses()


def free_address() -> str:
    """A loopback address that no other caller gets, in this process or another."""
    return _addresses.next()
