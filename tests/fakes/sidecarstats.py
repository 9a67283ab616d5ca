"""Sidecars' statistics: pages as Istio's sidecars write them, served at each Pod's own loopback address on a port that replaces 15090."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

WORKERS = 2
VMS = WORKERS + 2
"""VMs of a running plug-in."""


def page(
    plugins: Mapping[str, int] | Sequence[str] = (),
    *,
    vms: int | None = None,
    changed: int = 1,
    draining: int = 0,
    warming: int = 0,
    rejected: int = 0,
    fetched: int = 0,
    fetch_failures: int = 0,
    uptime: int = 100_000,
    requests: tuple[int, int] | None = None,
) -> bytes:
    """`plugins`: names, or names with their reloads. `requests`: those that succeeded, and those that failed."""
    reloads = plugins if isinstance(plugins, Mapping) else dict.fromkeys(plugins, 0)
    values = {
        "envoy_server_concurrency": WORKERS,
        "envoy_server_uptime": uptime,
        "envoy_listener_manager_listener_create_success": 4,
        "envoy_listener_manager_listener_modified": changed,
        "envoy_listener_manager_total_filter_chains_draining": draining,
        "envoy_listener_manager_total_listeners_warming": warming,
        "envoy_listener_manager_lds_update_rejected": rejected,
        "envoy_wasm_remote_load_fetch_successes": fetched,
        "envoy_wasm_remote_load_fetch_failures": fetch_failures,
    }
    for name, count in reloads.items():
        values[f"envoy_wasm_{name}_vm_reload"] = 0
        values[f"envoy_wasm_{name}_vm_reload_success"] = count
    if vms is not None:
        values["envoy_wasm_envoy_wasm_runtime_v8_active"] = vms
    lines = [f"{name}{{}} {value}" for name, value in values.items()]
    if requests is not None:
        for code, count in zip(("200", "503"), requests, strict=True):
            lines.append(
                f'istio_requests_total{{reporter="destination",response_code="{code}"}} {count}'
            )
    return ("\n".join(lines) + "\n").encode()


@dataclass
class Sidecars:
    """`pages` by address; an address without a page closes connections."""

    port: int = 0
    pages: dict[str, bytes] = field(default_factory=dict)
    reads: Counter[str] = field(default_factory=Counter)
    """Requests by address."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        address = writer.get_extra_info("sockname")[0]
        self.reads[address] += 1
        if (body := self.pages.get(address)) is not None:
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()

    @asynccontextmanager
    async def running(self, *addresses: str) -> AsyncIterator["Sidecars"]:
        """Listen on these addresses of the loopback network, all with the same port."""
        first, *others = addresses
        async with await asyncio.start_server(self._serve, first, 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            servers = [
                await asyncio.start_server(self._serve, other, self.port) for other in others
            ]
            try:
                yield self
            finally:
                for each in servers:
                    each.close()
