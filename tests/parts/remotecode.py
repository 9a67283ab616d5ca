"""Listeners whose filters fetch their module, and a server of modules with answers that the test chooses; no control plane, no wasmer.

For modules that wasmer would refuse. Envoy watches a listener file (`envoy.envoy`); `Listeners.use` replaces it.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.parts import envoy, ports

CLUSTER = "modules"
_FILTER = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
_STRING = "type.googleapis.com/google.protobuf.StringValue"


class Origin:
    """Serves modules by their sha256, and 404 for all others."""

    def __init__(self) -> None:
        self.host = ""
        self._modules: dict[str, bytes] = {}
        self._held: dict[str, asyncio.Event] = {}
        self._once: set[str] = set()

    def add(self, module: bytes) -> str:
        """Serve the module; returns its sha256."""
        sha256 = hashlib.sha256(module).hexdigest()
        self._modules[sha256] = module
        return sha256

    def hold(self, sha256: str) -> None:
        """Hold requests for the module."""
        self._held[sha256] = asyncio.Event()

    def release(self, sha256: str) -> None:
        """Answer the held requests."""
        self._held.pop(sha256).set()

    def serve_once(self, sha256: str) -> None:
        """Answer one request for it, and 404 to the others."""
        self._once.add(sha256)

    async def _serve(self, request: web.Request) -> web.Response:
        sha256 = request.match_info["sha256"]
        if event := self._held.get(sha256):
            await event.wait()
        module = self._modules.get(sha256)
        if sha256 in self._once:
            self._once.discard(sha256)
            self._modules.pop(sha256)
        return web.Response(body=module) if module is not None else web.Response(status=404)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Origin"]:
        """Listen on a free port for as long as the context lasts."""
        application = web.Application()
        application.router.add_get("/wasm/{sha256}", self._serve)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, ports.LOOPBACK, 0)
            await site.start()
            self.host = "{}:{}".format(*runner.addresses[0][:2])
            yield self
        finally:
            for sha256 in list(self._held):
                self.release(sha256)
            await runner.cleanup()


@dataclass(frozen=True, slots=True)
class Plugin:
    """One filter. `policy` is Envoy's `failure_policy`; empty: `fail_open`, as wasmer writes it. `retries` are those of the fetch."""

    name: str
    sha256: str
    policy: str = "FAIL_CLOSED"
    configuration: str = ""
    retries: int = 0

    def filter(self) -> dict[str, Any]:
        """The HTTP filter. Its VM ID is unique, like the one that wasmer writes."""
        uri = {"uri": f"http://modules/wasm/{self.sha256}", "cluster": CLUSTER, "timeout": "20s"}
        remote = {
            "http_uri": uri,
            "sha256": self.sha256,
            "retry_policy": {"num_retries": self.retries},
        }
        config = {
            "name": self.name,
            **({"failure_policy": self.policy} if self.policy else {"fail_open": True}),
            "configuration": {"@type": _STRING, "value": self.configuration},
            "vm_config": {
                "vm_id": f"{self.sha256[:12]}-{self.policy}",
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"remote": remote},
            },
        }
        return {"name": f"wasm/{self.name}", "typed_config": {"@type": _FILTER, "config": config}}


@dataclass(slots=True)
class Listeners:
    """The listener file in `directory`: for each of `ports` one listener with the same plug-ins, before the cluster `web`."""

    directory: Path
    ports: Sequence[int]
    _uses: int = field(default=0)

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / "lds.yaml"

    def use(self, *plugins: Plugin) -> None:
        """Replace the file by one with these plug-ins on every listener."""
        document = yaml.safe_load(envoy.listeners_yaml(self.ports, cluster="web"))
        for listener in document["resources"]:
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            manager["http_filters"][:0] = [plugin.filter() for plugin in plugins]
        self._uses += 1
        new = self.directory / f"lds-{self._uses}.yaml"
        new.write_text(yaml.safe_dump(document, sort_keys=False))
        new.rename(self.path)
