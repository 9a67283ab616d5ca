"""Foreign command line clients: crane, oras, kubectl, helm. Each run has a home folder of its own and no credentials.

Not wrappers of their features: a test passes the arguments that a user would type.
"""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.parts import goruntime, preloaded, provision


class ClientError(Exception):
    """A client ended with a status other than 0, or did not end in time. The message holds its output."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The output of a client, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def inherited() -> dict[str, str]:
    """A clean environment: only PATH, and the variables with which `make coverage` measures the program."""
    variables = {"PATH": os.environ.get("PATH", os.defpath)}
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_FILE"):
        if value := os.environ.get(name):
            variables[name] = value
    return variables


@dataclass(frozen=True, slots=True)
class Client:
    """A program and its environment: `inherited` and `environment`, and no other variables of ours."""

    program: Path
    home: Path
    environment: Mapping[str, str]
    entry_point: str = ""
    """The console script of a command of ours, which is forked instead of started (`preloaded.py`)."""

    async def run(
        self, *arguments: str | Path, stdin: bytes = b"", check: bool = True, timeout: float = 60
    ) -> Completed:
        """Run to the end, in the home folder. Raises ClientError on a status other than 0 if `check`, and after `timeout` s."""
        command = [str(self.program), *map(str, arguments)]
        line = f"`{self.program.name} {' '.join(command[1:])}`"
        try:
            async with asyncio.timeout(timeout):
                status, out, err = await self._run(command, stdin)
        except TimeoutError as error:
            raise ClientError(f"{line} did not end within {timeout:g} s") from error
        completed = Completed(status, out.decode(), err.decode())
        if check and completed.returncode:
            raise ClientError(
                f"{line} ended with status {completed.returncode}\n{completed.stdout}{completed.stderr}"
            )
        return completed

    async def _run(self, command: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        environment = {**inherited(), **self.environment}
        if self.entry_point and preloaded.fits(environment):
            return await preloaded.run(
                self.entry_point, command, environment=environment, directory=self.home, stdin=stdin
            )
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.home,
            env=environment,
            start_new_session=True,
        )
        try:
            out, err = await process.communicate(stdin)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out, err


async def crane(home: Path) -> Client:
    """go-containerregistry's client. It uses plain HTTP for registries on loopback; log in with `auth login`."""
    return await asyncio.to_thread(_client, provision.crane, home)


async def oras(home: Path) -> Client:
    """The reference client of OCI artifacts. Give it `--plain-http` for a registry without TLS."""
    return await asyncio.to_thread(_client, provision.oras, home)


async def istio_wasm_fetch(home: Path) -> Client:
    """The istio-agent's fetcher of modules: `DIR URL`; prints the path of the module in DIR."""
    return await asyncio.to_thread(_client, provision.istio_wasm_fetch, home)


async def kubectl(home: Path, *, kubeconfig: Path) -> Client:
    """The Kubernetes client, on the cluster that `kubeconfig` names."""
    return await asyncio.to_thread(_client, provision.kubectl, home, KUBECONFIG=str(kubeconfig))


async def helm(home: Path, *, kubeconfig: Path | None = None) -> Client:
    """Helm, on the cluster that `kubeconfig` names; without one it can only render."""
    files = {"KUBECONFIG": str(kubeconfig)} if kubeconfig is not None else {}
    return await asyncio.to_thread(_client, provision.helm, home, **files)


async def helm_4(home: Path, *, kubeconfig: Path) -> Client:
    """Helm 4, on the cluster that `kubeconfig` names."""
    return await asyncio.to_thread(_client, provision.helm_4, home, KUBECONFIG=str(kubeconfig))


async def crds_established(kubectl: Client, *names: str, timeout: float = 60) -> None:
    """Return once these CustomResourceDefinitions are served (all of them if no names are given). Raises TimeoutError.

    `kubectl wait` would fail on a definition that the API server has not processed yet (its conditions are null then).
    """
    async with asyncio.timeout(timeout):
        while True:
            said = await kubectl.run("get", "crd", *names, "--output=json")
            found = json.loads(said.stdout)
            if all(_is_established(crd) for crd in found.get("items", [found])):
                return
            await asyncio.sleep(0.1)


def _is_established(crd: Mapping[str, Any]) -> bool:
    conditions = (crd.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def _client(get: Callable[[], Path], home: Path, **environment: str) -> Client:
    docker = home / ".docker"
    docker.mkdir(parents=True, exist_ok=True)
    environment |= {"HOME": str(home), "DOCKER_CONFIG": str(docker)}
    return Client(get(), home, {**goruntime.BRIEF, **environment})
