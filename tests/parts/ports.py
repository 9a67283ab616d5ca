"""Free TCP ports on loopback.

Not a reservation: between the choice and the bind of whoever gets the number, another process may take it. Programs
that can choose for themselves (port 0) do; those that cannot are started again with another number.
"""

import socket
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"


def free_ports(count: int, *, address: str = LOOPBACK) -> list[int]:
    """Different ports, all free at this moment."""
    with ExitStack() as held:
        ports = []
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            listener.bind((address, 0))
            ports.append(int(listener.getsockname()[1]))
    return ports


def free_port(*, address: str = LOOPBACK) -> int:
    """A port that is free at this moment."""
    return free_ports(1, address=address)[0]
