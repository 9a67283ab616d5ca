"""Listening sockets, made by us: both IP versions on one socket, a backlog for bursts, enough descriptors.

Not a server. Invariant: `[::]` means every address of the machine, on machines without IPv6 too.
"""

import contextlib
import errno
import resource
import socket
from typing import Final

import structlog

from autowasm.errors import UsageError

_log = structlog.get_logger(__name__)

_DESCRIPTORS: Final = 1 << 20
"""Enough for a million connections; where the hard limit is endless, some C libraries walk through all of it."""
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


def parse_listen(listen: str) -> tuple[str, int]:
    """`[::]:8081`, `127.0.0.1:0`, `:8081` (same as `[::]`), `localhost:0` → address and port. Raises UsageError."""
    host, separator, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = host[1:-1] if bracketed else host
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not separator or not 0 <= number <= 65535 or (":" in address and not bracketed):
        raise UsageError(f"cannot listen on {listen!r}: write it as [::]:8081 or 127.0.0.1:8081")
    address = {"": "::", "*": "::", "localhost": "127.0.0.1"}.get(address, address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot listen on {listen!r}: {host!r} is no IP address (names are not looked up)"
        ) from error
    return address, number


def listening_socket(listen: str, *, backlog: int) -> socket.socket:
    """A non-blocking socket that listens on `listen`. Raises UsageError."""
    address, port = parse_listen(listen)
    try:
        try:
            return _listen(address, port, backlog)
        except OSError as error:
            if address != "::" or error.errno not in _NO_IPV6:
                raise
            _log.info("no IPv6 on this machine, listening on IPv4 only", listen=listen)
            return _listen("0.0.0.0", port, backlog)  # noqa: S104 - that is what was asked for
    except OSError as error:
        raise UsageError(f"cannot listen on {listen!r}: {error.strerror or error}") from error


def _listen(address: str, port: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        listener.bind((address, port))
        listener.listen(backlog)
        stack.pop_all()
    return listener


def raise_descriptor_limit() -> int:
    """Allow as many open files as we may; returns how many. Each connection needs one, and another while it waits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft
