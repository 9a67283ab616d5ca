"""An HTTP server with scripted answers, byte for byte: for answers that no real API server can be made to give."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from autowasm.kube.client import KubeClient
from autowasm.limits import KubeLimits
from autowasm.net.pools import Pools


@dataclass(frozen=True)
class WireRequest:
    """One request as it came."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """`parts` are sent one after another; a number is a pause in seconds. `cut`: the body has no end."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[bytes | float, ...] = (b"{}",)
    cut: bool = False


def json_answer(document: object, *, status: int = 200, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, names, (json.dumps(document).encode(),))


def failure(code: int, reason: str, message: str = "no", **headers: str) -> Answer:
    status = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return json_answer(status, status=code, **headers)


class Wire:
    """Returns the answers in the given order, then `otherwise` without end."""

    def __init__(self, *answers: Answer, otherwise: Answer | None = None) -> None:
        self.answers = list(answers)
        self.otherwise = otherwise or Answer(503)
        self.requests: list[WireRequest] = []
        self.connections = 0
        self.reply: Callable[[WireRequest], Answer] | None = None
        self.url = ""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await self._read(reader)) is not None:
                self.requests.append(request)
                if self.reply is not None:
                    answer = self.reply(request)
                else:
                    answer = self.answers.pop(0) if self.answers else self.otherwise
                if not await self._write(writer, answer):
                    return
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.sleep(0.005)

    async def _read(self, reader: asyncio.StreamReader) -> WireRequest | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.strip().split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path, _, query = target.partition("?")
        return WireRequest(method, path, query, headers, body)

    async def _write(self, writer: asyncio.StreamWriter, answer: Answer) -> bool:
        lines = [f"HTTP/1.1 {answer.status} X", "Transfer-Encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for part in answer.parts:
            if isinstance(part, bytes):
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                await writer.drain()
            else:
                await asyncio.sleep(part)
        if answer.cut:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@asynccontextmanager
async def serve(wire: Wire, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Run it; yields the port."""
    server = await asyncio.start_server(wire.handle, "127.0.0.1", 0, ssl=tls)
    port: int = server.sockets[0].getsockname()[1]
    wire.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield port
    finally:
        server.close()
        await wire.stop()
        await server.wait_closed()


def write_kubeconfig(path: Path, url: str, user: Mapping[str, Any]) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": dict(user)}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path.write_text(yaml.safe_dump(document))
    return path


@asynccontextmanager
async def client_of(
    wire: Wire, directory: Path, *, limits: KubeLimits | None = None
) -> AsyncIterator[KubeClient]:
    """The server, and a client of it that was configured by a kubeconfig with a token."""
    with Pools() as pools:
        async with serve(wire):
            kubeconfig = write_kubeconfig(directory / "config", wire.url, {"token": "s3cr3t"})
            async with KubeClient(
                kubeconfig=kubeconfig, pools=pools, user_agent="test/1", limits=limits
            ) as client:
                yield client
