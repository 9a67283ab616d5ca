"""TlsServer: a server that does TLS handshakes with `ssl`, in a thread, and answers 200 to each request.

For failing handshakes: asyncio's own server ends those without the alert that OpenSSL and Go send.
"""

import contextlib
import socket
import ssl
import threading
from types import TracebackType
from typing import Self

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class TlsServer:
    """A context manager on a free loopback port. Without a `context` it sends the greeting of another protocol."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._serving: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="handshakes")

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # ends `accept`, which `close` does not
        if self._serving is not None:
            # `join` waits for the loop of a client that has not disconnected yet.
            with contextlib.suppress(OSError):
                self._serving.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                connection.settimeout(5)
                # A copy: TLS takes over the original socket.
                with connection, contextlib.suppress(OSError), connection.dup() as self._serving:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        if self._context is None:
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.recv(4096)
            return
        with connection.dup() as kept:
            try:
                with self._context.wrap_socket(connection, server_side=True) as wrapped:
                    wrapped.recv(4096)
                    wrapped.sendall(_ANSWER)
            except ssl.SSLError:
                # If the socket is closed with unread data, the kernel sends a reset, and the client may not see the alert.
                kept.shutdown(socket.SHUT_WR)
                while kept.recv(4096):
                    pass
