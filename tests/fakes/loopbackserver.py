"""LoopbackServer: an asyncio server on a free loopback port whose connections end with it.

Invariant: after the context no task of a connection runs, and none has logged the disconnect of its client.
"""

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import Self


@dataclass(slots=True)
class LoopbackServer:
    """An async context manager. A subclass handles a connection in `_serve`, after which the connection is closed."""

    tls: ssl.SSLContext | None = field(default=None, kw_only=True)
    _server: asyncio.Server | None = field(default=None, init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self.tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def url(self) -> str:
        """Scheme and host."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client disconnected, as many tests do on purpose
        except asyncio.CancelledError:
            pass  # the test has ended; asyncio's server would log the error
        finally:
            self._tasks.discard(task)
            writer.close()
