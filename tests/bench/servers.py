"""`wasmer`, nginx and Go's file server, serving the same files at the same paths, each alone on the server's processor or on all of them.

Envoy Gateway serves modules with Go's `net/http` from its own process. The clients are in `load.py`. Invariant: all have every
blob before the first request, and none logs requests.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import measure, tools
from tests.parts import envoy, ports, provision, wasmer, wire
from tests.parts.process import Process

_BLOCK = 1 << 20
TEMPLATE = envoy.listeners_yaml([1], cluster="none")
"""Standalone mode needs one; its output is not read."""
_NGINX = """
daemon off; {workers} pid {directory}/nginx.pid; error_log {directory}/error.log;
worker_rlimit_nofile {files};
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; tcp_nopush off; tcp_nodelay on; sendfile_max_chunk 0;
  keepalive_requests 100000000; open_file_cache max=1000; default_type application/wasm;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  server {{ listen 127.0.0.1:{port} backlog=4096; root {root}; }}
}}
"""
_ONE, _WORKERS = "master_process off;", "user root; worker_processes {count};"
_SAMPLE = re.compile(r'^(\w+)(?:\{le="([^"]+)"\})? (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Server:
    """A server of `/wasm/<sha256>`. `admin` is the address of `wasmer`'s metrics; nginx has none."""

    name: str
    pid: int
    port: int
    log: Path
    admin: str = ""

    async def metrics(self) -> dict[str, float]:
        """Unlabelled samples, and histograms' buckets as `name le`."""
        answer = await wire.get(f"http://{self.admin}/metrics")
        found = _SAMPLE.findall(answer.body.decode())
        return {f"{name} {bound}".strip(): float(value) for name, bound, value in found}

    async def longest_iteration(self) -> float:
        """The longest hold of the event loop since the last call, in milliseconds."""
        return 1000 * (await self.metrics())["autowasm_loop_longest_turn_seconds"]


@dataclass(frozen=True, slots=True)
class Serving:
    """The servers and their files: size in bytes → path of the URL, and of the file."""

    ours: Server
    nginx: Server
    go: Server
    urls: Mapping[int, str]
    files: Mapping[int, Path]

    def in_turn(self, round_number: int) -> Sequence[Server]:
        """Ours and nginx; the order alternates from round to round."""
        return (self.ours, self.nginx) if round_number % 2 else (self.nginx, self.ours)

    def all_in_turn(self, round_number: int) -> Sequence[Server]:
        """All servers; each round begins with another one."""
        servers = (self.ours, self.nginx, self.go)
        first = round_number % len(servers)
        return (*servers[first:], *servers[:first])


@asynccontextmanager
async def serving(
    directory: Path,
    sizes: Sequence[int],
    *,
    cpu: int | None = measure.SERVER_CPU,
    cgroup: Path | None = None,
) -> AsyncIterator[Serving]:
    """Run all. `cgroup`: the group of `wasmer` and nginx (v1 or v2). `cpu` None: on all processors, nginx with a worker for each."""
    blobs = directory / "wasmer/cache/blobs"
    files = await asyncio.to_thread(_make_blobs, blobs, sizes)
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(_wasmer(directory / "wasmer", cpu, cgroup))
        www = directory / "www"
        await asyncio.to_thread(www.mkdir)
        await asyncio.to_thread((www / "wasm").symlink_to, blobs)
        rival = nginx(directory / "nginx", www, cpu=cpu, cgroup=cgroup)
        theirs = await stack.enter_async_context(rival)
        go = await stack.enter_async_context(_fileserver(directory / "fileserver", www, cpu))
        urls = {size: f"/wasm/{file.name}" for size, file in files.items()}
        for server in (ours, theirs, go):
            for url in urls.values():  # on the first request the server hashes the file
                await wire.request("HEAD", f"http://{ports.LOOPBACK}:{server.port}{url}")
        yield Serving(ours, theirs, go, urls, files)


@asynccontextmanager
async def _wasmer(directory: Path, cpu: int | None, cgroup: Path | None) -> AsyncIterator[Server]:
    prefix = measure.pinned(cpu, cgroup=cgroup)
    async with wasmer.standalone(
        directory, template=TEMPLATE, prefix=[str(word) for word in prefix]
    ) as server:
        yield Server(
            "wasmer",
            server.process.pid,
            int(server.host.rpartition(":")[2]),
            server.process.log,
            server.admin,
        )


@asynccontextmanager
async def nginx(
    directory: Path, root: Path, *, cpu: int | None, cgroup: Path | None = None
) -> AsyncIterator[Server]:
    """Serve the files in `root`, with one process; `cpu` None: with a worker for each processor, and `pid` is that of their parent."""
    port = ports.free_port()
    program = await asyncio.to_thread(tools.nginx)

    def prepare() -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "nginx.conf"
        workers = _ONE if cpu is not None else _WORKERS.format(count=os.cpu_count())
        config.write_text(
            _NGINX.format(directory=directory, root=root, port=port, files=20_000, workers=workers)
        )
        return config

    config = await asyncio.to_thread(prepare)
    command = [*measure.pinned(cpu, cgroup=cgroup), program, "-p", directory, "-c", config]
    process = Process("nginx", command, log=directory / "nginx.log")

    async def ready() -> bool:
        answer = await wire.get(f"http://{ports.LOOPBACK}:{port}/", timeout=2)
        return answer.status in (200, 403, 404)  # without an index it refuses to start

    async with process:
        await process.start(ready=ready)
        yield Server("nginx", process.pid, port, process.log)


@asynccontextmanager
async def _fileserver(directory: Path, root: Path, cpu: int | None) -> AsyncIterator[Server]:
    """Go's file server, over the files in `root`."""
    port = ports.free_port()
    program = await asyncio.to_thread(provision.fileserver)
    address = f"{ports.LOOPBACK}:{port}"
    command = [*measure.pinned(cpu), program, "-listen", address, "-root", root]
    await asyncio.to_thread(directory.mkdir)
    process = Process("fileserver", command, log=directory / "fileserver.log")

    async def ready() -> bool:
        return (await wire.get(f"http://{address}/", timeout=2)).status == 200

    async with process:
        await process.start(ready=ready)
        yield Server("http.FileServer", process.pid, port, process.log)


def _make_blobs(blobs: Path, sizes: Sequence[int]) -> dict[int, Path]:
    blobs.mkdir(parents=True)
    files = {}
    for size in sizes:
        block = os.urandom(min(size, _BLOCK))
        content = (block * (size // len(block) + 1))[:size]
        files[size] = blobs / hashlib.sha256(content).hexdigest()
        files[size].write_bytes(content)
    return files
