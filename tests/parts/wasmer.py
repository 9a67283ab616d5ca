"""`wasmer standalone` and `wasmc`, as a user runs them: real processes of the installed package.

Not a mock and not an import of the code: tests run the command. Ports stay the same through `stop` and `start`, so
an Envoy with these ports in its configuration can connect again.
"""

import asyncio
import copy
import functools
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.parts import ports, wire
from tests.parts.clients import Client
from tests.parts.process import Process

LOOPBACK_SOURCES = ("--allow-cidr", "127.0.0.0/8")
"""The registries and object servers of tests are on loopback, which `wasmer controller` refuses by default."""
SLOW_LEASE = ("--lease-duration=15s", "--renew-deadline=10s", "--retry-period=2s")
"""The timings of client-go: a leader keeps its Lease while the API server answers slowly."""
ENVOY_CLUSTER = "wasmer"
"""The name that the filters use for the blob port; Envoy needs it as a static cluster."""


@dataclass(slots=True)
class Wasmer:
    """A `wasmer standalone` with its directories."""

    process: Process
    directory: Path
    host: str
    """`address:port` that Envoy fetches from."""
    admin: str

    @property
    def config(self) -> Path:
        """The folder for AutoWasm and Secret documents."""
        return self.directory / "config"

    @property
    def lds(self) -> Path:
        """The listener file that Envoy watches."""
        return self.directory / "envoy" / "lds.yaml"

    async def start(self, *, timeout: float = 30) -> None:
        """Run it (again); returns when it is ready. Raises ProcessError."""
        await self.process.start(ready=self.ready, timeout=timeout)

    async def ready(self) -> bool:
        """The answer of `/readyz`."""
        return (await wire.request("GET", f"http://{self.admin}/readyz", timeout=2)).status == 200

    def apply(self, document: Mapping[str, Any], *, file: str | None = None) -> None:
        """Put one document into the config directory, by a rename; `file` defaults to `<name>.yaml`."""
        target = self.config / (file or f"{document['metadata']['name']}.yaml")
        half = target.with_name(f".{target.name}.new")
        half.write_text(json.dumps(dict(document), indent=2))  # PyYAML writes `y` without quotes
        half.replace(target)

    def delete(self, name: str) -> None:
        """Remove the file of the AutoWasm `name`."""
        (self.config / f"{name}.yaml").unlink()

    def status(self, name: str, *, namespace: str = "default") -> dict[str, Any]:
        """`status` as wasmer wrote it; empty if there is none yet."""
        whole = _read(self.directory / "envoy/status" / f"{namespace}.{name}.yaml")
        status: dict[str, Any] = whole.get("status", {})
        return status

    def envoyfilter(self, name: str, *, namespace: str = "default") -> dict[str, Any]:
        """The EnvoyFilter as wasmer wrote it; empty if there is none."""
        return _read(self.directory / "envoy/envoyfilters" / f"{namespace}.{name}.yaml")

    async def wait_phase(self, name: str, *phases: str, timeout: float = 30) -> dict[str, Any]:
        """The status, once its phase is one of `phases`. Raises TimeoutError with the last status and the log."""
        what = f"{name} is {' or '.join(phases)}"
        return await self.wait_status(
            name, lambda status: status.get("phase") in phases, what=what, timeout=timeout
        )

    async def wait_status(
        self,
        name: str,
        condition: Callable[[dict[str, Any]], bool],
        *,
        what: str = "the condition holds",
        timeout: float = 30,
    ) -> dict[str, Any]:
        """The status, once it fulfils the condition. Raises TimeoutError with the last status and the log."""
        status: dict[str, Any] = {}
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self.process.check()
                    status = await asyncio.to_thread(self.status, name)
                    if condition(status):
                        return status
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise TimeoutError(
                f"not after {timeout:g} s: {what}. The status is {status}\n"
                f"{await self.process.tail()}"
            ) from error

    async def wait_gone(self, name: str, *, timeout: float = 30) -> None:
        """Wait until the AutoWasm `name` has no EnvoyFilter and no status. Raises TimeoutError with the log.

        Envoy has removed the filter some milliseconds earlier: wasmer removes it from the listener file
        first.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self.process.check()
                    if not await asyncio.to_thread(self._left_of, name):
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise TimeoutError(f"{name} is still there\n{await self.process.tail()}") from error

    def _left_of(self, name: str) -> bool:
        return bool(self.envoyfilter(name) or self.status(name))

    async def metric(self, name: str) -> float:
        """The sum of all series of a metric."""
        answer = await wire.request("GET", f"http://{self.admin}/metrics")
        total = 0.0
        for line in answer.body.decode().splitlines():
            if line.partition("{")[0].partition(" ")[0] == name:
                total += float(line.rpartition(" ")[2])
        return total


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    return copy.deepcopy(_parse(text))


@functools.lru_cache(maxsize=64)
def _parse(text: bytes) -> dict[str, Any]:
    """A wait reads the same text fifty times a second, and PyYAML takes milliseconds to parse it."""
    return yaml.safe_load(text) or {}


@asynccontextmanager
async def standalone(
    directory: Path,
    *,
    template: str,
    plain_http: Sequence[str] = (),
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    fork: bool = True,
) -> AsyncIterator[Wasmer]:
    """Run it over `directory` (config/, envoy/, cache/, wasmer.log) until the context ends.

    `template` is the text of the listener template; `prefix` is a command that runs wasmer. With a prefix, or
    without `fork`, it starts a new interpreter, for tests that measure its memory.
    """
    port, admin = ports.free_ports(2)
    config = directory / "config"

    def prepare() -> None:
        config.mkdir(parents=True, exist_ok=True)
        (directory / "template.yaml").write_text(template)

    await asyncio.to_thread(prepare)
    command: list[str | Path] = [*prefix, program("wasmer"), "standalone", "--config", config]
    command += ["--envoy-dir", directory / "envoy", "--cache-dir", directory / "cache"]
    command += ["--listener-template", directory / "template.yaml"]
    command += [
        "--listen",
        f"{ports.LOOPBACK}:{port}",
        "--admin-listen",
        f"{ports.LOOPBACK}:{admin}",
    ]
    command += ["--envoy-cluster", ENVOY_CLUSTER, "--envoy-authority", f"{ports.LOOPBACK}:{port}"]
    command += ["--drain-delay", "0", "--log-format", "console"]
    for host in plain_http:
        command += ["--plain-http-registry", host]
    command += arguments
    process = Process(
        "wasmer",
        command,
        log=directory / "wasmer.log",
        env=env,
        cwd=directory,
        entry_point="" if prefix or not fork else "wasmer",
    )
    wasmer = Wasmer(process, directory, f"{ports.LOOPBACK}:{port}", f"{ports.LOOPBACK}:{admin}")
    async with process:
        await wasmer.start()
        yield wasmer


def program(name: str) -> Path:
    """The console script beside the running interpreter."""
    return Path(sys.executable).with_name(name)


def wasmc(home: Path, **environment: str) -> Client:
    """`wasmc` with a home folder of its own."""
    docker = home / ".docker"
    docker.mkdir(parents=True, exist_ok=True)
    variables = {"HOME": str(home), "DOCKER_CONFIG": str(docker), **environment}
    return Client(program("wasmc"), home, variables, entry_point="wasmc")


@asynccontextmanager
async def controller(
    directory: Path,
    *,
    kubeconfig: Path,
    host: str,
    plain_http: Sequence[str] = (),
    reach: Sequence[str] = LOOPBACK_SOURCES,
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    fork: bool = True,
) -> AsyncIterator[Wasmer]:
    """Run `wasmer controller` against an API server; its blob port listens at `host` (`address:port`).

    `reach` are the flags for the addresses that sources may have. Without `fork` it starts a new interpreter.
    """
    admin = f"{ports.LOOPBACK}:{ports.free_port()}"
    command: list[str | Path] = [program("wasmer"), "controller", "--kubeconfig", kubeconfig]
    command += ["--cache-dir", directory / "cache", "--listen", host, "--admin-listen", admin]
    command += [*reach, "--drain-delay", "0", "--log-format", "console"]
    for registry in plain_http:
        command += ["--plain-http-registry", registry]
    command += arguments
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    process = Process(
        "wasmer",
        command,
        log=directory / "wasmer.log",
        env=env,
        cwd=directory,
        entry_point="wasmer" if fork else "",
    )
    wasmer = Wasmer(process, directory, host, admin)
    async with process:
        await wasmer.start()
        yield wasmer
