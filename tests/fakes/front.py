"""Front: a reverse proxy before a real registry that answers some requests in its own way.

Only for what a real registry cannot be made to do: everything else is the answer of the registry behind it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import aiohttp
import yarl
from aiohttp import web

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date"})


@dataclass(frozen=True, slots=True)
class Said:
    """One answer of the front."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to the front, and the status of the registry's answer."""

    method: str
    path: str
    authorization: str | None
    status: int


Rule = Callable[[Asked], Said | None]
"""None: the registry's own answer."""


@dataclass(slots=True)
class Front:
    """An async context manager on a free loopback port."""

    target: str
    """`HOST:PORT` of the registry."""
    rule: Rule
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    _close: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    _session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        runner = web.ServerRunner(web.Server(self._answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._close = [runner.cleanup, self._session.close]
        return self

    async def __aexit__(self, *_: object) -> None:
        for close in self._close:
            await close()

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.port}"

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        assert self._session is not None
        body = await request.read()
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _HOP_BY_HOP
        }
        async with self._session.request(
            request.method,
            yarl.URL(f"http://{self.target}{request.path_qs}", encoded=True),
            headers=headers,
            data=body or None,
            allow_redirects=False,
        ) as answer:
            asked = Asked(
                request.method,
                request.path,
                request.headers.get("Authorization"),
                answer.status,
            )
            self.asked.append(asked)
            said = self.rule(asked)
            if said is None:
                kept = {
                    name: value
                    for name, value in answer.headers.items()
                    if name.lower() not in _HOP_BY_HOP
                }
                said = Said(answer.status, await answer.read(), kept)
                if request.method == "HEAD" and "Content-Length" in answer.headers:
                    length = answer.headers["Content-Length"]
                    return web.Response(
                        status=said.status, headers={**said.headers, "Content-Length": length}
                    )
            return web.Response(status=said.status, body=said.body, headers=said.headers)
