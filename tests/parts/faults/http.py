"""An HTTP proxy between our client and a real server, with wrong answers on command.

Not a fake of the server: undisturbed answers are the real server's. `proxy.py` has the faults below HTTP.
Invariant: each fault with an effect is counted.
"""

import asyncio
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "te", "upgrade"})


@dataclass(frozen=True, slots=True)
class Forward:
    """No fault is active."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Every request gets this answer, and is not forwarded."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lie:
    """In every answer below `path`, the last byte is changed; length and headers stay the same."""

    path: str


@dataclass(frozen=True, slots=True)
class Drip:
    """The body is sent at one byte per second."""


@dataclass(frozen=True, slots=True)
class Misstate:
    """In every answer below `path`, `Content-Length` is `by` bytes larger than the body (smaller if negative), and then the connection ends."""

    path: str
    by: int


@dataclass(frozen=True, slots=True)
class Request:
    """A request, and the status of the server's answer."""

    method: str
    path: str
    authorization: str | None
    status: int


@dataclass(frozen=True, slots=True)
class Replace:
    """Every request is forwarded; if `rule` returns an answer, the client gets that instead of the server's."""

    rule: Callable[[Request], Answer | None]


Fault = Forward | Answer | Lie | Drip | Misstate | Replace


class HttpFaultProxy:
    """Forwards 127.0.0.1:`port` to `upstream` (`http://host:port`); an async context manager."""

    def __init__(self, upstream: str = "", fault: Fault | None = None) -> None:
        self.upstream = upstream
        self.fault: Fault = fault or Forward()
        self.injected = 0
        self.forwarded: list[Request] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False, trust_env=False)
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.fault = Forward()
        await self._runner.cleanup()
        await self._session.close()

    @property
    def host(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        fault = self.fault
        if isinstance(fault, Answer):
            self.injected += 1
            return web.Response(status=fault.status, headers=fault.headers, body=fault.body)
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in _HOP
        }
        headers["Host"] = request.host
        async with self._session.request(
            request.method,
            f"{self.upstream}{request.path_qs}",
            headers=headers,
            data=io.BytesIO(await request.content.read()) if request.can_read_body else None,
            allow_redirects=False,
        ) as answer:
            body = await answer.read()
            forwarded = Request(
                request.method, request.path, request.headers.get("Authorization"), answer.status
            )
            self.forwarded.append(forwarded)
            if isinstance(fault, Replace) and (instead := fault.rule(forwarded)) is not None:
                self.injected += 1
                return web.Response(
                    status=instead.status, headers=instead.headers, body=instead.body
                )
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in _HOP | {"content-length"}
            }
            if isinstance(fault, Lie) and fault.path in request.path and len(body) > 1:
                self.injected += 1
                body = body[:-1] + bytes([body[-1] ^ 1])
            if isinstance(fault, Drip) and len(body) > 1:
                return await self._drip(request, answer.status, kept, body)
            if isinstance(fault, Misstate) and fault.path in request.path and len(body) > 1:
                return await self._misstate(request, answer.status, kept, body, by=fault.by)
            response = web.Response(status=answer.status, headers=kept, body=body)
            if request.method == "HEAD" and "content-length" in answer.headers:
                response.headers["Content-Length"] = answer.headers["content-length"]
            return response

    async def _drip(
        self, request: web.BaseRequest, status: int, headers: Mapping[str, str], body: bytes
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=status, headers={**headers, "Content-Length": str(len(body))}
        )
        await response.prepare(request)
        for position in range(len(body)):
            self.injected += 1
            try:
                await response.write(body[position : position + 1])
            except OSError:
                break
            await asyncio.sleep(1)
            if not isinstance(self.fault, Drip):
                await response.write(body[position + 1 :])
                break
        return response

    async def _misstate(
        self,
        request: web.BaseRequest,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        by: int,
    ) -> web.StreamResponse:
        self.injected += 1
        length = str(max(1, len(body) + by))
        response = web.StreamResponse(status=status, headers={**headers, "Content-Length": length})
        response.force_close()
        await response.prepare(request)
        await response.write(body)  # as many bytes as were announced
        return response
