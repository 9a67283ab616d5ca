"""The service behind Envoy: a tiny HTTP server in this process that returns the request.

Not real in itself, but nothing here depends on it: any HTTP server would do.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.parts import ports

# Envoy keeps connections: if a server closes an idle one just as a request arrives, Envoy answers 503.
_KEEPALIVE_SECONDS = 3600


class Upstream:
    """Echoes every request as JSON: `method`, `path` (with query), `headers` (lower-case names), `body`.

    The query `?delay=SECONDS` holds the answer, `?status=CODE` sets its status. `requests` counts the
    requests.
    """

    def __init__(self) -> None:
        self.host = ""
        self.requests = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}"

    async def _echo(self, request: web.Request) -> web.Response:
        self.requests += 1
        await asyncio.sleep(float(request.query.get("delay", 0)))
        said = {
            "method": request.method,
            "path": request.path_qs,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": (await request.read()).decode(errors="replace"),
        }
        return web.Response(
            status=int(request.query.get("status", 200)),
            text=json.dumps(said),
            content_type="application/json",
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Upstream"]:
        """Listen on a free port for as long as the context lasts."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._echo)
        runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            shutdown_timeout=1,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, ports.LOOPBACK, 0).start()
            address = runner.addresses[0]
            self.host = f"{ports.LOOPBACK}:{address[1]}"
            yield self
        finally:
            await runner.cleanup()


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """A running upstream on a free port."""
    async with Upstream().running() as server:
        yield server
