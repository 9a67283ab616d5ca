"""An object server: fixed bodies by path, over HTTP."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def object_server(bodies: Mapping[str, bytes]) -> AsyncIterator[str]:
    """Serve `bodies` by path until the context ends; yields the URL without a trailing slash."""

    async def answer(request: web.Request) -> web.Response:
        body = bodies.get(request.path)
        if body is None:
            raise web.HTTPNotFound
        return web.Response(body=body, headers={"ETag": f'"{len(body)}"'})

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
