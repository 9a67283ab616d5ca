"""Real OCI registries: distribution's (storage on disk, passwords, TLS) and go-containerregistry's.

Faults of a registry are in `faults/`. Invariant: `host` stays the same through `stop` and `start`, so a test
can stop the registry and start it again.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.parts import goruntime, ports, provision, wire
from tests.parts.process import PORT_ATTEMPTS, Process, ProcessError

_READY_SECONDS = 20


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a server certificate for 127.0.0.1 and localhost, and of the authority to trust."""

    certificate: Path
    key: Path
    authority: Path


class RegistryServer:
    """A registry process on a port of its own."""

    def __init__(
        self, process: Process, *, port: int, scheme: str, address: str = ports.LOOPBACK
    ) -> None:
        self.process = process
        self.host = f"{address}:{port}"
        self.url = f"{scheme}://{self.host}"

    async def start(self) -> None:
        """Run (again), on the same port and with the same storage. Raises ProcessError."""
        await self.process.start(ready=self._answers, timeout=_READY_SECONDS)

    async def stop(self) -> None:
        """End it: from now on connections are refused."""
        await self.process.stop()

    async def _answers(self) -> bool:
        answer = await wire.get(f"{self.url}/v2/", timeout=2)
        return answer.status in (200, 401)


@asynccontextmanager
async def distribution(
    directory: Path,
    *,
    users: Mapping[str, str] | None = None,
    tls: TlsFiles | None = None,
    auth: Mapping[str, object] | None = None,
    address: str = ports.LOOPBACK,
) -> AsyncIterator[RegistryServer]:
    """distribution's registry with its storage, configuration and log in `directory`; delete is enabled.

    `users` (name to password) enables basic authentication, for reading too; `tls` enables https; `auth` is the
    section of this name in its configuration (`tokens.TokenService`). `address` is where it listens.
    """
    program = await asyncio.to_thread(provision.distribution)
    # The registry would send traces to a collector on a port of ours.
    environment = {**os.environ, **goruntime.SMALL, "OTEL_TRACES_EXPORTER": "none"}

    async def make(port: int) -> RegistryServer:
        config = await asyncio.to_thread(
            _configure,
            directory,
            host=f"{address}:{port}",
            users=users,
            tls=tls,
            auth=auth,
        )
        process = Process(
            "registry",
            [program, "serve", config],
            log=directory / "registry.log",
            env=environment,
            cwd=directory,
        )
        scheme = "https" if tls else "http"
        return RegistryServer(process, port=port, scheme=scheme, address=address)

    async with _running(make, address=address) as server:
        yield server


@asynccontextmanager
async def crane(directory: Path) -> AsyncIterator[RegistryServer]:
    """`crane registry serve` with its blobs and log in `directory`: starts at once, has no authentication.

    It keeps manifests in memory only: after `stop` and `start` it is empty.
    """
    program = await asyncio.to_thread(provision.crane)
    disk = directory / "blobs"

    async def make(port: int) -> RegistryServer:
        await asyncio.to_thread(disk.mkdir, parents=True, exist_ok=True)
        process = Process(
            "crane registry serve",
            [program, "registry", "serve", "--address", f"{ports.LOOPBACK}:{port}", "--disk", disk],
            log=directory / "crane.log",
            cwd=directory,
        )
        return RegistryServer(process, port=port, scheme="http")

    async with _running(make) as server:
        yield server


@asynccontextmanager
async def _running(
    make: Callable[[int], Awaitable[RegistryServer]], *, address: str = ports.LOOPBACK
) -> AsyncIterator[RegistryServer]:
    for attempts_left in reversed(range(PORT_ATTEMPTS)):
        server = await make(ports.free_port(address=address))
        try:
            await server.start()
        except ProcessError as error:
            if error.port_taken and attempts_left:
                continue
            raise
        break
    try:
        yield server
    finally:
        await server.stop()


def _configure(
    directory: Path,
    *,
    host: str,
    users: Mapping[str, str] | None,
    tls: TlsFiles | None,
    auth: Mapping[str, object] | None,
) -> Path:
    storage = directory / "storage"
    storage.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
    }
    http: dict[str, object] = {
        "addr": host,
        "secret": secrets.token_hex(16),
    }
    if tls:
        http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    config["http"] = http
    if users is not None:
        path = directory / "htpasswd"
        path.write_text("".join(_htpasswd(name, password) for name, password in users.items()))
        config["auth"] = {"htpasswd": {"realm": "registry", "path": str(path)}}
    if auth is not None:
        config["auth"] = dict(auth)
    target = directory / "registry.yaml"
    target.write_text(yaml.safe_dump(config, sort_keys=False))
    return target


def _htpasswd(name: str, password: str) -> str:
    # Imported here: the demo runs without the dependencies of the tests.
    import bcrypt  # noqa: PLC0415

    # The smallest possible number of rounds: the registry checks the password of every request.
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds=4)).decode()
    return f"{name}:{hashed}\n"
